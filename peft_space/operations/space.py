"""The Space of a clone: made, and looked at from outside. Not for the page."""

from peft_space.operations.progress import Json, Report, progress


def deploy_space(
    space: str,
    token: str | None = None,
    hardware: str | None = None,
    public: bool = False,
    report: Report | None = None,
) -> Json:
    """Make a Space of this clone, or bring one up to date: `url`. Not for the page."""
    from peft_space.hub.space import deploy_space as deploy

    return {"url": deploy(space, token, hardware, public, progress(report))}


def smoke_test(url: str, token: str | None = None, report: Report | None = None) -> Json:
    """What a running page did well, seen from outside: `checks`. Not for the page."""
    from peft_space.hub.smoke_test import smoke_test as try_page

    return {"checks": try_page(url, token, progress(report))}
