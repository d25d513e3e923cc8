from wmtp_train.settings.diff import differences, leaves


def test_leaves_are_named_by_their_path():
    tree = {"a": 1, "b": {"c": [2], "d": {"e": None, "f": {}}}}
    assert leaves(tree) == {"a": 1, "b.c": [2], "b.d.e": None}


def test_differences_are_named_with_both_values():
    one = {"a": 1, "b": {"c": 2, "d": 3}, "x": 0}
    assert differences(one, one) == []
    assert differences(one, {"a": 1, "b": {"c": 5}, "y": None, "x": 0}) == [
        ("b.c", 2, 5),
        ("b.d", 3, "nothing"),
        ("y", "nothing", None),
    ]
