//! The kit passes a sound kind, and finds what is wrong with each unsound one.

use super::*;

async fn check(bug: Bug, commits: bool) -> std::result::Result<kit::Report, kit::Violation> {
    let toy = Toy { bug, ..Toy::default() };
    kit::check(|| ToyWorld::new(&toy, commits)).await
}

#[tokio::test]
async fn a_sound_kind_passes() {
    let report = check(Bug::None, false).await.unwrap();
    // Begun, done twice with the next intent, and ended with the last.
    assert_eq!((report.steps, report.records), (3, 4));
    assert!(report.runs > 25, "{report:?}");
}

#[tokio::test]
async fn a_sound_kind_with_a_point_of_no_return_passes() {
    check(Bug::None, true).await.unwrap();
}

#[tokio::test]
async fn planted_bugs_are_found() {
    for (bug, scenario, what) in [
        (Bug::UndoForgets, "step 1 fails after its effect", "is not as before: /outside/b-"),
        (Bug::UndoForgetsWhatFailed, "step 0 fails after its effect", "is not as before: /outside/a-"),
        (Bug::UndoNotRepeatable, "everything twice, step 0 fails before its effect", "leaves something behind"),
        (Bug::RunNotRepeatable, "everything twice", "expected 1, found 2"),
        (Bug::ProbeSaysDone, "killed after record 0", "is not as after an undisturbed job"),
        (Bug::FinishLeavesBusy, "undisturbed", "vm \"toy\" is left \"busy\""),
        (Bug::FinishForgetsError, "step 0 fails before its effect", "is not as before: /catalog/vms/0/state/power"),
        (Bug::StepsDependOnTime, "killed after the effect of step 0", ""),
    ] {
        let violation = check(bug, false).await.unwrap_err();
        let found = violation.to_string();
        assert!(violation.scenario.starts_with(scenario), "{bug:?}: expected '{scenario}', found: {found}");
        assert!(violation.what.contains(what), "{bug:?}: expected '{what}', found: {found}");
    }
}
