from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from wmtp_train.settings.schema import Settings
from wmtp_train.settings.sections import ReferenceSettings, SelectionSettings


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield prefix + name, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")


def test_every_setting_says_what_it_is():
    leaves = {
        name: field
        for name, field in fields(Settings)
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    }
    assert {"steps", "data.sequence_length", "selection.k_percent", "critic.discount"} <= leaves.keys()
    assert [name for name, field in leaves.items() if not field.description] == []


def test_the_defaults_are_those_of_the_definitions():
    settings = Settings()
    assert (settings.model.horizon, settings.selection.k_percent, settings.selection.scope) == (4, 0.6, "batch")
    assert (settings.critic.discount, settings.critic.temperature, settings.normalize_by) == (0.95, 0.7, "valid")
    assert settings.critic.gradient_to_trunk is False


@pytest.mark.parametrize("k_percent", [0.0, -0.1, 1.5, float("nan"), float("inf")])
def test_k_percent_is_a_fraction(k_percent):
    with pytest.raises(ValidationError, match="k_percent"):
        SelectionSettings(k_percent=k_percent)


@pytest.mark.parametrize("k_percent", [1e-6, 1.0])
def test_the_bounds_of_k_percent_are_where_they_should_be(k_percent):
    assert SelectionSettings(k_percent=k_percent).k_percent == k_percent


def test_an_existing_model_and_a_configuration_exclude_each_other():
    with pytest.raises(ValidationError, match=r"model\.source and model\.config exclude each other"):
        Settings(model={"source": "folder", "config": {"model_type": "llama"}})


def test_a_section_refuses_a_key_that_it_does_not_have():
    with pytest.raises(ValidationError, match="Extra inputs"):
        ReferenceSettings(sources="folder")


def test_settings_do_not_change_once_made():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().steps = 5


def test_settings_come_back_from_their_own_json():
    settings = Settings(steps=7, selection={"k_percent": 0.25}, model={"config": {"model_type": "llama"}})
    assert Settings(**Settings.model_validate_json(settings.model_dump_json()).model_dump()) == settings
