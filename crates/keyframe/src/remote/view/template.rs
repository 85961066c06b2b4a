//! Templates.

use std::io::{self, Write};

use keyframe_manager::request::TemplateView;
use keyframe_model::TemplateState;

use super::{fields, moment, print, size};

fn state(state: &TemplateState) -> &'static str {
    match state {
        TemplateState::Creating { .. } => "creating",
        TemplateState::Ready => "ready",
        TemplateState::Deleting { .. } => "deleting",
        TemplateState::Error { .. } => "error",
    }
}

pub(in crate::remote) fn list(templates: &[TemplateView], out: &mut impl Write) -> io::Result<()> {
    let row = |view: &TemplateView| {
        let template = &view.template;
        vec![template.name.to_string(), state(&template.state).to_owned(), size(view.size), moment(template.created)]
    };
    print(&["TEMPLATE", "STATE", "DISKS", "CREATED (UTC)"], templates.iter().map(row).collect(), out)
}

pub(in crate::remote) fn show(view: &TemplateView, out: &mut impl Write) -> io::Result<()> {
    let template = &view.template;
    let mut list = vec![
        ("template", template.name.to_string()),
        ("id", template.id.to_string()),
        ("state", state(&template.state).to_owned()),
    ];
    if let TemplateState::Error { reason } = &template.state {
        list.push(("reason", reason.clone()));
    }
    if !template.description.is_empty() {
        list.push(("description", template.description.clone()));
    }
    list.push(("created (utc)", moment(template.created)));
    list.push(("processors", template.hardware.cpus.to_string()));
    list.push(("memory", size(template.hardware.memory)));
    list.push(("disks", format!("{}, together {}", template.hardware.disks.len(), size(view.size))));
    fields(&list, out)
}
