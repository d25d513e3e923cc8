import re
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from wmtp_train.metrics.monitors.tensorboard import TensorBoard


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "run/tensorboard"))
    events.Reload()
    return events


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def test_what_is_written_is_read_back(make_settings, tmp_path):
    monitor = TensorBoard(make_settings(), 0)
    monitor.write({"train/weighted_loss": 2.0, "ce/head_1": 3.0}, 1)
    monitor.write({"train/weighted_loss": 1.5}, 2)
    monitor.close(finished=True)
    assert points(tmp_path, "train/weighted_loss") == [(1, 2.0), (2, 1.5)]
    assert points(tmp_path, "ce/head_1") == [(1, 3.0)]


def test_a_point_can_be_seen_before_the_run_is_closed(make_settings, tmp_path):
    monitor = TensorBoard(make_settings(), 0)
    monitor.write({"ce/head_0": 2.0}, 1)
    assert points(tmp_path, "ce/head_0") == [(1, 2.0)]
    monitor.close(finished=True)


def test_the_layout_puts_all_heads_of_a_quantity_into_one_chart(make_settings, tmp_path):
    TensorBoard(make_settings(data={"evaluate": {"clean": []}}), 0).close(finished=True)
    event = read(tmp_path).Tensors(metadata.CONFIG_SUMMARY_TAG)[0]
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = {
        chart.title: [re.compile(tag) for tag in chart.multiline.tag]
        for category in layout.category
        for chart in category.chart
    }

    def charts_of(tag: str) -> list[str]:
        return [title for title, tags in charts.items() if any(pattern.search(tag) for pattern in tags)]

    for quantity in ("ce", "reference_ce", "excess_mean", "threshold", "selected_ratio", "selected_count"):
        assert charts_of(f"{quantity}/head_0") == charts_of(f"{quantity}/head_3") == [quantity]
    assert charts_of("evaluation/clean/ce/head_0") == charts_of("evaluation/clean/ce/head_12") == ["clean"]
    assert charts_of("noise/kept/base64") == ["kept by kind"]
    assert charts_of("noise/precision") == charts_of("noise/recall") == ["selection"]


def test_a_resumed_run_drops_what_the_run_that_was_cut_off_wrote_after_its_checkpoint(make_settings, tmp_path):
    settings = make_settings()
    first = TensorBoard(settings, 0)
    for step in range(6):
        first.write({"ce/head_0": float(step)}, step)
    first.close(finished=False)
    resumed = TensorBoard(settings, 4)
    resumed.write({"ce/head_0": 40.0}, 4)
    resumed.write({"ce/head_0": 50.0}, 5)
    resumed.close(finished=True)
    assert points(tmp_path, "ce/head_0") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0)]


def test_a_run_that_starts_again_without_a_checkpoint_drops_all_of_the_first_attempt(make_settings, tmp_path):
    settings = make_settings()
    for value in (1.0, 2.0):
        monitor = TensorBoard(settings, 0)
        monitor.write({"evaluation/ce": value}, 0)
        monitor.close(finished=False)
    assert points(tmp_path, "evaluation/ce") == [(0, 2.0)]


def test_settings_and_final_metrics_stand_in_the_runs_own_folder(make_settings, tmp_path):
    settings = make_settings(algo="random", steps=7, selection={"k_percent": 0.5})
    monitor = TensorBoard(settings, None)
    monitor.write_final({"clean/ce/head_0": 2.5, "humaneval/pass@1": 0.25}, 7)
    monitor.close(finished=True)
    assert len(list((tmp_path / "run/tensorboard").rglob("*"))) == 1  # neither a second file nor a second run
    events = read(tmp_path)
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
