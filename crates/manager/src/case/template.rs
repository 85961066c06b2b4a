//! Templates.

use keyframe_model::agent::TemplateId;
use keyframe_model::{Name, Template};

use super::page::{answer, wanted};
use super::snapshot::check_description;
use crate::kind::hold::check_generation;
use crate::kind::template as kind;
use crate::request::{
    Call, Caller, JobRef, Page, PageRequest, TemplateCreate, TemplateFilter, TemplateUpdate, TemplateView,
};
use crate::{Error, Manager, Result};

impl Manager {
    /// All that match, by the order of their making.
    pub async fn list_templates(
        &self,
        caller: &Caller,
        filter: &TemplateFilter,
        page: &PageRequest,
    ) -> Result<Page<TemplateView>> {
        self.admit(caller)?;
        let (name, search) = (filter.name.clone(), filter.search.clone());
        let filter = keyframe_catalog::TemplateFilter { name, search };
        let found = self.catalog.read().await?.templates(&filter, &wanted(page)?).await?;
        Ok(answer(found, |template| template.id.to_string(), view))
    }

    /// One.
    pub async fn template(&self, caller: &Caller, template: TemplateId) -> Result<TemplateView> {
        self.admit(caller)?;
        Ok(view(self.catalog.read().await?.template(template).await?))
    }

    /// A template by its identifier or its name.
    pub async fn find_template(&self, caller: &Caller, name: &str) -> Result<TemplateId> {
        self.admit(caller)?;
        let missing = || Error::not_found(format!("template {name}"), "template list");
        let mut tx = self.catalog.read().await?;
        if let Ok(id) = name.parse() {
            return Ok(tx.template(id).await.map_err(|e| Error::of_lookup(e, missing))?.id);
        }
        let found = tx.find_template(&name.parse()?).await?;
        found.map(|template| template.id).ok_or_else(missing)
    }

    /// Makes one.
    pub async fn create_template(&self, call: &Call, wish: TemplateCreate) -> Result<JobRef> {
        self.admit(&call.caller)?;
        check_description(&wish.description)?;
        wish.name.check_new()?;
        let (name, description) = (wish.name.clone(), wish.description.clone());
        let order = kind::TemplateOrder { name, description, source: wish.source, expected: call.expected };
        self.order::<kind::TemplateCreate>(call, order).await
    }

    /// Changes what is said about one.
    pub async fn update_template(&self, call: &Call, id: TemplateId, wish: TemplateUpdate) -> Result<TemplateView> {
        self.admit(&call.caller)?;
        check_description(wish.description.as_deref().unwrap_or_default())?;
        wish.name.as_ref().map_or(Ok(()), Name::check_new)?;
        let mut tx = self.catalog.write().await?;
        let mut template = tx.template(id).await?;
        check_generation(template.name.as_str(), template.generation, call.expected)?;
        template.name = wish.name.unwrap_or(template.name);
        template.description = wish.description.unwrap_or(template.description);
        tx.update_template(&mut template).await?;
        tx.commit().await?;
        Ok(view(template))
    }

    /// Deletes one; machines made of it stay whole.
    pub async fn delete_template(&self, call: &Call, template: TemplateId) -> Result<JobRef> {
        self.admit(&call.caller)?;
        let order = kind::TemplateDeleteOrder { template, expected: call.expected };
        self.order::<kind::TemplateDelete>(call, order).await
    }
}

fn view(template: Template) -> TemplateView {
    TemplateView { size: template.hardware.disks.iter().map(|disk| disk.size).sum(), template }
}
