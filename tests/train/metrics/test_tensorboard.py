from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2, metadata

from wmtp_train.metrics.tensorboard import Monitor


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def test_what_is_written_is_read_back(tmp_path):
    monitor = Monitor(tmp_path, True, 0, [])
    monitor.write({"train/loss": 2.0, "ce/head_1": 3.0}, 1)
    monitor.write({"train/loss": 1.5}, 2)
    monitor.close()
    assert points(tmp_path, "train/loss") == [(1, 2.0), (2, 1.5)]
    assert points(tmp_path, "ce/head_1") == [(1, 3.0)]


def test_a_point_can_be_seen_before_the_run_is_closed(tmp_path):
    monitor = Monitor(tmp_path, True, 0, [])
    monitor.write({"train/loss": 2.0}, 1)
    assert points(tmp_path, "train/loss") == [(1, 2.0)]
    monitor.close()


def test_the_layout_puts_all_heads_of_a_quantity_into_one_chart(tmp_path):
    import re

    Monitor(tmp_path, True, 0, ["clean"]).close()
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


def test_a_resumed_run_drops_what_the_run_that_was_cut_off_wrote_after_its_checkpoint(tmp_path):
    first = Monitor(tmp_path, True, 0, [])
    for step in range(1, 6):
        first.write({"train/loss": float(step)}, step)
    first.close()
    resumed = Monitor(tmp_path, True, 4, [])
    resumed.write({"train/loss": 40.0}, 4)
    resumed.write({"train/loss": 50.0}, 5)
    resumed.close()
    assert points(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0)]


def test_other_ranks_write_nothing(tmp_path):
    monitor = Monitor(tmp_path / "tensorboard", False, 0, ["clean"])
    monitor.write({"train/loss": 2.0}, 1)
    monitor.close()
    assert not (tmp_path / "tensorboard").exists()
