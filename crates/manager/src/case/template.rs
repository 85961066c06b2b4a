//! Templates.

use keyframe_model::agent::TemplateId;

use crate::request::{
    Call, Caller, JobRef, Page, PageRequest, TemplateCreate, TemplateFilter, TemplateUpdate, TemplateView,
};
use crate::{Manager, Result};

impl Manager {
    /// All that match, by the order of their making.
    pub async fn list_templates(
        &self,
        caller: &Caller,
        filter: &TemplateFilter,
        page: &PageRequest,
    ) -> Result<Page<TemplateView>> {
        Err(self.unfinished(format_args!("{:?}", (&caller, &filter, &page,))))
    }

    /// One.
    pub async fn template(&self, caller: &Caller, template: TemplateId) -> Result<TemplateView> {
        Err(self.unfinished(format_args!("{:?}", (&caller, &template,))))
    }

    /// A template by its identifier or its name.
    pub async fn find_template(&self, caller: &Caller, name: &str) -> Result<TemplateId> {
        Err(self.unfinished(format_args!("{:?}", (&caller, &name,))))
    }

    /// Makes one.
    pub async fn create_template(&self, call: &Call, wish: TemplateCreate) -> Result<JobRef> {
        Err(self.unfinished(format_args!("{:?}", (&call, &wish,))))
    }

    /// Changes what is said about one.
    pub async fn update_template(
        &self,
        call: &Call,
        template: TemplateId,
        wish: TemplateUpdate,
    ) -> Result<TemplateView> {
        Err(self.unfinished(format_args!("{:?}", (&call, &template, &wish,))))
    }

    /// Deletes one; machines made of it stay whole.
    pub async fn delete_template(&self, call: &Call, template: TemplateId) -> Result<JobRef> {
        Err(self.unfinished(format_args!("{:?}", (&call, &template,))))
    }
}
