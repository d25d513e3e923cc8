from wmtp_lab.plots import head_color, kind_styles, shade_opacity


def test_kinds_have_different_looks_that_do_not_depend_on_their_order() -> None:
    styles = kind_styles("hgfedcba")
    assert styles == kind_styles("abcdefgh")
    assert len({style.color for style in styles.values()}) == 8
    assert len({(style.color, style.underline) for style in kind_styles(map(str, range(8))).values()}) == 8


def test_heads_have_different_colors_also_when_there_is_but_one() -> None:
    assert len({head_color(h, 32) for h in range(32)}) == 32
    assert head_color(0, 1) == head_color(0, 4)


def test_shades_grow_darker_from_nothing() -> None:
    opacities = [shade_opacity(shade, 7) for shade in range(7)]
    assert opacities[0] == 0
    assert opacities == sorted(set(opacities))
    assert opacities[-1] < 0.75
