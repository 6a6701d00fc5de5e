//! What a run would cost.

use nibble_engine::preview;
use nibble_run::{PlanReport, RunSettings};
use serde::Deserialize;
use ts_rs::TS;

use super::{App, work};
use crate::error::CommandError;

/// What to plan.
#[derive(Clone, Debug, Deserialize, TS)]
pub struct PlanRequest {
    /// A model's folder, or an id of the catalog.
    pub model: String,
    /// The settings of the run.
    pub settings: RunSettings,
    /// Memory to hold the plans against; `None`: what other programs leave.
    pub budget_bytes: Option<u64>,
}

/// The plans of every method, by category: the page draws no regions, and asks at every move of a
/// slider.
#[tauri::command]
pub async fn plan(request: PlanRequest) -> Result<PlanReport, CommandError> {
    let PlanRequest { model, settings, budget_bytes } = request;
    work(move || {
        let mut report = preview::plan_report(&model, &settings, budget_bytes)?;
        report.methods.iter_mut().for_each(|method| method.regions.clear());
        Ok(report)
    })
    .await
}

/// Measures how fast pages move on this machine; plans tell their time from then on.
#[tauri::command]
pub async fn measure_page_rates(app: App<'_>) -> Result<(), CommandError> {
    let app = app.inner().clone();
    work(move || {
        app.measure_page_rates();
        Ok(())
    })
    .await
}
