from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from wmtp_train.metrics.hparams import write_hparams


def test_settings_and_figures_stand_in_the_runs_own_folder(make_settings, tmp_path):
    settings = make_settings(algo="random", steps=7, selection={"k_percent": 0.5})
    write_hparams(tmp_path / "tensorboard", settings, {"clean/ce/head_0": 2.5, "humaneval/pass@1": 0.25})
    assert len(list((tmp_path / "tensorboard").rglob("*"))) == 1  # neither a second file nor a second run
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for tag, value in (("final/clean/ce/head_0", 2.5), ("final/humaneval/pass@1", 0.25)):
        assert [(point.step, point.value) for point in events.Scalars(tag)] == [(7, value)]
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert plugin.plugin_name == "hparams"
    chosen = HParamsPluginData.FromString(plugin.content).session_start_info.hparams
    assert chosen["algo"].string_value == "random"
    assert chosen["k_percent"].number_value == 0.5
    assert chosen["horizon"].number_value == 3
    told = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/experiment").plugin_data.content).experiment
    assert [metric.name.tag for metric in told.metric_infos] == ["final/clean/ce/head_0", "final/humaneval/pass@1"]
