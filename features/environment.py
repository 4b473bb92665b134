"""``behave``: the features on the use cases, with fakes around them."""

from typing import Any

from features.scene import Context, runs_at, set_scene
from features.use_case_driver import UseCaseDriver


def before_scenario(context: Context, scenario: Any) -> None:
    if runs_at(scenario, level="use_cases"):
        set_scene(context, UseCaseDriver())
