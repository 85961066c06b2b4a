//! Templates.

use keyframe_agent_api::{Generation, TemplateId};
use keyframe_model::{Name, Template};
use sqlx::any::AnyRow;

use crate::event::{Change, EventKind};
use crate::sql::{Columns, Conditions, args, containing, document, folded};
use crate::{Error, ErrorKind, Owner, Page, PageOf, Result, Transaction};

/// Which templates.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TemplateFilter {
    /// Of this name exactly.
    pub name: Option<String>,
    /// With this in name or description, upper or lower case.
    pub search: Option<String>,
}

impl Transaction {
    /// Adds a template.
    pub async fn insert_template(&mut self, template: &Template) -> Result<()> {
        let sql = "INSERT INTO templates (id, name, generation, searchable, document) VALUES ($1, $2, $3, $4, $5)";
        let text = document(template, &template.name)?;
        let args = args![template.id, template.name.as_str(), template.generation, searchable(template), text];
        self.execute("add a template", sql, args).await.map_err(|e| e.taken(|| taken(&template.name)))?;
        self.own(Owner::Template(template.id), &template.hardware).await?;
        self.note(EventKind::Template, template.id, template.generation, Change::Made);
        Ok(())
    }

    /// A template.
    pub async fn template(&mut self, id: TemplateId) -> Result<Template> {
        let row = self.row_if_any("read a template", "SELECT * FROM templates WHERE id = $1", args![id]).await?;
        row.as_ref()
            .map(read)
            .transpose()?
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no template {id}")))
    }

    /// The template of that name.
    pub async fn find_template(&mut self, name: &Name) -> Result<Option<Template>> {
        let sql = "SELECT * FROM templates WHERE name = $1";
        self.row_if_any("find a template", sql, args![name.as_str()]).await?.as_ref().map(read).transpose()
    }

    /// Replaces a template that has not changed since, and raises its generation, here too.
    pub async fn update_template(&mut self, template: &mut Template) -> Result<()> {
        let next = Template { generation: template.generation.next(), ..template.clone() };
        let sql = "UPDATE templates SET name = $3, generation = $4, searchable = $5, document = $6 \
                   WHERE id = $1 AND generation = $2";
        let text = document(&next, &next.name)?;
        let args =
            args![template.id, template.generation, next.name.as_str(), next.generation, searchable(&next), text];
        let changed = self.execute("change a template", sql, args).await;
        if changed.map_err(|e| e.taken(|| taken(&next.name)))? == 0 {
            return Err(self.stale_template(template.id).await);
        }
        self.own(Owner::Template(template.id), &next.hardware).await?;
        *template = next;
        self.note(EventKind::Template, template.id, template.generation, Change::Changed);
        Ok(())
    }

    /// Removes a template that has not changed since.
    pub async fn delete_template(&mut self, id: TemplateId, generation: Generation) -> Result<()> {
        self.disown(Owner::Template(id)).await?;
        let sql = "DELETE FROM templates WHERE id = $1 AND generation = $2";
        if self.execute("remove a template", sql, args![id, generation]).await? == 0 {
            return Err(self.stale_template(id).await);
        }
        self.note(EventKind::Template, id, generation.next(), Change::Gone);
        Ok(())
    }

    /// Templates in the order of their making.
    pub async fn templates(&mut self, filter: &TemplateFilter, page: &PageOf<TemplateId>) -> Result<Page<Template>> {
        let mut conditions = Conditions::default();
        if let Some(name) = &filter.name {
            conditions.and("name = ?", name.as_str());
        }
        if let Some(text) = &filter.search {
            conditions.and("searchable LIKE ? ESCAPE '!'", containing(text));
        }
        self.page("templates", false, conditions, page, read).await
    }

    async fn stale_template(&mut self, id: TemplateId) -> Error {
        match self.template(id).await {
            Ok(now) => {
                let message = format!("template {} has changed since it was read; read it again", now.name);
                Error::new(ErrorKind::Stale, message)
            }
            Err(e) => e,
        }
    }
}

fn read(row: &AnyRow) -> Result<Template> {
    row.document("document")
}

fn searchable(template: &Template) -> String {
    folded(&format!("{}\n{}", template.name, template.description))
}

fn taken(name: &Name) -> String {
    format!("there is a template named {name} already; choose another name")
}
