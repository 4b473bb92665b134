"""``behave``: the features on the use cases, with fakes around them."""

from typing import Any

from features.scene import Context, set_scene, skip_elsewhere
from features.use_case_driver import UseCaseDriver


def before_scenario(context: Context, scenario: Any) -> None:
    skip_elsewhere(scenario, level="use_cases")
    set_scene(context, UseCaseDriver())
