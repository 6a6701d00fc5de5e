//! The page's types are made from these: one file, which this test keeps up to date.

use std::{fs, path::Path};

use nibble_engine::{
    export::{ExportFormat, ExportProgress, ExportReport, ExportStage},
    playground::{AnswerPiece, Side},
    preview::ModelChoice,
};
use ts_rs::{Config, TS};

use crate::{
    built_in::DatasetChoice,
    closing::CloseChoice,
    commands::{
        answers::AnswerRequest, datasets::InspectRequest, exports::ExportRequest,
        plans::PlanRequest,
    },
    dropping::{Dropped, DroppedKind},
    error::CommandError,
    preferences::{Preferences, Theme},
    state::{Card, RunDetails, Startup},
    watching::RunUpdate,
};

const HEADER: &str = "\
// Made from the Rust types by the test `types_are_current` of nibble-studio; do not edit.
// After a change of those: NIBBLE_WRITE_TYPES=1 cargo test -p nibble-studio types_are_current
";

fn types() -> String {
    let config = Config::new().with_large_int("number");
    let mut text = HEADER.to_owned();
    macro_rules! declare {
        ($($kind:ty),* $(,)?) => {
            $(text.push_str(&format!("\nexport {}\n", <$kind as TS>::decl(&config)));)*
        };
    }
    use nibble_run as run;
    declare!(
        CommandError,
        Startup,
        nibble_engine::devices::Device,
        nibble_engine::devices::CudaStatus,
        ModelChoice,
        run::ModelSummary,
        DatasetChoice,
        Preferences,
        Theme,
        Card,
        run::RunSettings,
        run::Method,
        run::TrainingDevice,
        run::Schedule,
        run::ComputePrecision,
        run::WeightPrecision,
        run::Paging,
        run::Recompute,
        run::Optimizer,
        run::TrainOn,
        run::Columns,
        run::LoraSettings,
        run::SampleSettings,
        PlanRequest,
        run::PlanReport,
        run::MethodPlan,
        run::PagingPlan,
        run::CategoryBytes,
        run::Category,
        run::PlannedRegion,
        run::Residence,
        run::Suggestion,
        run::SuggestedSettings,
        InspectRequest,
        nibble_data::Inspection,
        nibble_data::InspectedSample,
        nibble_data::MalformedLine,
        nibble_data::Format,
        run::Event,
        run::CardReadings,
        run::OperationTime,
        run::RunState,
        RunUpdate,
        nibble_engine::train::Command,
        run::RunSummary,
        RunDetails,
        AnswerRequest,
        AnswerPiece,
        Side,
        ExportRequest,
        ExportFormat,
        ExportProgress,
        ExportStage,
        ExportReport,
        CloseChoice,
        Dropped,
        DroppedKind,
    );
    // One line for each description and field.
    text.replace("/**\n * ", "  /** ").replace("\n */\n", " */\n  ").replace(", };", ",\n};")
}

#[test]
fn types_are_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join("ui")
        .join("studio")
        .join("src")
        .join("platform")
        .join("types.ts");
    if std::env::var_os("NIBBLE_WRITE_TYPES").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, types()).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == types(), "types.ts is stale: run this test with NIBBLE_WRITE_TYPES=1");
}
