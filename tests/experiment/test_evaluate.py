"""The numbers at the top of results.json."""

from memjax.experiment.evaluate import HEADLINES, headline


def test_mappings_from_the_number_of_memories_stand_at_the_top_where_a_model_has_them() -> None:
    stages = {name: {"seconds": 1.0, "tokens": 5} for name in ("main", "control")}
    copied, recalled = {"copy_accuracy": 0.5}, {"recall_exact": {"16": 0.25}}
    models = {"main": copied | recalled | {"autoencoder_exact": 0.75}, "control": copied}
    found = headline({"models": models, "stages": stages}, "main", ("control",))
    assert found["recall_exact"] == {"16": 0.25} and found["autoencoder_exact"] == 0.75
    assert found["copy_accuracy"] == found["copy_accuracy_control"] == 0.5
    plain = {f"{key}{suffix}" for key in HEADLINES for suffix in ("", "_control")}
    others = {"autoencoder_accuracy", "autoencoder_exact", "tokens_per_second", "seconds_training"}
    assert set(found) == plain | others | {"recall_exact"}


def test_a_run_without_the_control_without_memory_has_the_numbers_of_its_model_with_none_in_view():
    stages = {name: {"seconds": 1.0, "tokens": 5} for name in ("main", "no_memory")}
    ours = {"copy_accuracy": 0.5, "copy_empty_accuracy": 0.25, "next_token_empty_nats": 4.0}
    results = {"models": {"main": ours, "no_memory": {"copy_accuracy": 0.125}}, "stages": stages}
    alone = headline(results, "main", ())
    assert alone["copy_accuracy_no_memory"] == 0.25
    assert alone["next_token_nats_no_memory"] == 4.0
    trained = headline(results, "main", ("no_memory",))
    assert trained["copy_accuracy_no_memory"] == 0.125
