//! The controller plugin over its socket, before a real operator and real engines: acceptance XC and XI, in the words of
//! the CSI specification.
//!
//! Each case is a function, named by the id that it shows, and makes what it needs; one laboratory serves them all, one
//! after another. All are run, also when some fail. `CSI_CASES=xc_15,xi_` runs those whose names begin so.

mod capacity;
mod changing;
mod concurrent;
mod failing;
mod figures;
mod identity;
mod lifecycle;
mod listing;
mod missing;
mod node;
mod publishing;
mod stage;
mod wire;

use anyhow::{Result, ensure};
use e2e::steps::step;

use stage::Stage;

/// Whether a case is to be run.
fn is_asked_for(case: &str) -> bool {
    let Ok(asked) = std::env::var("CSI_CASES") else { return true };
    asked.split(',').any(|prefix| case.starts_with(prefix))
}

/// Runs cases and notes which failed.
macro_rules! cases {
    ($stage:ident, $failed:ident: $($module:ident :: $case:ident,)*) => {$(
        if is_asked_for(stringify!($case)) {
            let case = stringify!($case).replace('_', " ");
            let outcome = step(&case, $module::$case(&mut $stage)).await;
            if let Err(error) = outcome {
                println!("{error:#}");
                $failed.push(case);
            }
            $stage.tidy().await?;
        }
    )*};
}

#[tokio::test]
async fn the_controller_keeps_the_rules_of_csi() -> Result<()> {
    let mut stage = Stage::set().await?;
    let mut failed = Vec::new();
    cases!(stage, failed:
        identity::xi_1_the_plugin_says_its_name_and_version,
        identity::xi_2_the_plugin_says_what_it_offers,
        identity::xi_3_the_plugin_is_ready,
        identity::xc_1_what_is_offered_works_and_what_does_not_is_not_offered,
        capacity::xc_2_capacity_is_the_free_space_of_all_pools,
        capacity::xc_3_capacity_of_a_node_is_the_free_space_of_its_pools,
        capacity::capacity_is_less_by_a_volume_as_soon_as_it_is_made,
        lifecycle::xc_4_a_volume_is_made_with_the_class_in_its_context,
        lifecycle::xc_5_the_same_volume_again_is_the_same_and_another_is_refused,
        lifecycle::xc_6_a_volume_is_deleted,
        lifecycle::xc_7_a_volume_that_is_not_there_is_deleted,
        lifecycle::a_volume_in_use_is_not_deleted,
        lifecycle::replicas_are_where_the_class_allows_them,
        lifecycle::claims_of_a_stateful_set_are_apart,
        lifecycle::long_names_are_names,
        lifecycle::a_raw_block_volume_is_made,
        lifecycle::what_cannot_be_made_is_refused_by_name,
        listing::xc_8_two_volumes_are_listed,
        listing::xc_19_a_page_says_where_the_next_one_begins,
        listing::xc_20_without_a_limit_all_are_listed_and_no_token,
        listing::a_token_that_nobody_gave_is_aborted,
        publishing::xc_9_access_by_one_node_is_confirmed,
        publishing::xc_10_access_by_many_nodes_is_not_confirmed_and_why,
        publishing::xc_11_a_published_volume_has_a_target_on_that_node,
        publishing::xc_12_a_published_volume_is_published_again,
        publishing::xc_13_an_unpublished_volume_has_no_target,
        publishing::xc_14_an_unpublished_volume_is_unpublished_again,
        publishing::xc_15_another_node_takes_nothing_from_the_one_that_has_it,
        publishing::xc_16_a_volume_that_is_not_there_is_unpublished,
        publishing::xc_17_a_second_node_is_refused_and_the_first_named,
        publishing::a_node_without_engine_uses_volumes_too,
        publishing::a_volume_that_somebody_made_by_hand_is_adopted,
        changing::ro_1_a_volume_grows_used_or_not,
        changing::ro_8_what_cannot_be_is_named,
        changing::the_number_of_replicas_follows_a_class,
        missing::every_required_field_that_is_missing_is_named,
        missing::what_is_not_offered_is_unimplemented,
        concurrent::of_sixteen_identical_calls_all_end_alike,
        concurrent::two_plugins_are_as_good_as_one,
        failing::each_request_to_the_control_plane_breaks_once,
        failing::each_answer_of_the_control_plane_is_lost_once,
        failing::a_deadline_that_passes_is_told_and_the_next_call_ends_well,
        failing::without_the_control_plane_every_call_is_unavailable,
        node::a_volume_goes_from_claim_to_pod_and_back,
        figures::of_operator_and_engine_are_those_of_the_volume,
        figures::a_node_that_uses_volumes_registers_and_deregisters,
        publishing::xc_18_with_its_node_away_a_volume_is_published_elsewhere,
        identity::xi_4_the_plugin_is_not_ready_without_the_operator,
    );
    ensure!(failed.is_empty(), "failed: {}", failed.join("; "));
    stage.lab.run.passed();
    Ok(())
}
