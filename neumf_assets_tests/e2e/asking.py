"""What the web interface asks of Dagster when somebody clicks: runs launched, watched and cancelled by GraphQL."""

from __future__ import annotations

from typing import Any, Protocol

from neumf_assets_tests.e2e.servers import wait_for

REPOSITORY = {"repositoryName": "__repository__", "repositoryLocationName": "neumf_assets"}
IN_PROGRESS = {"NOT_STARTED", "QUEUED", "STARTING", "STARTED", "CANCELING"}


class Site(Protocol):
    """A web interface with a study called ``tiny``."""

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The data of a GraphQL answer."""
        ...

    def read(self, query: str, **variables: Any) -> dict[str, Any]:
        """The same, with patience."""
        ...


def runs(site: Site) -> dict[str, dict[str, Any]]:
    """The last runs by id, their tags as a dict."""
    query = "{ runsOrError(limit: 100) { ... on Runs { results { id status jobName tags { key value } } } } }"
    results = site.read(query)["runsOrError"]["results"]
    return {run["id"]: {**run, "tags": {t["key"]: t["value"] for t in run["tags"]}} for run in results}


def add_datasets(site: Site, *names: str) -> None:
    """Add partitions."""
    for name in names:
        site.ask(
            """mutation Add($repository: RepositorySelector!, $key: String!) { addDynamicPartition(
                 repositorySelector: $repository, partitionsDefName: "tiny_datasets", partitionKey: $key)
                 { __typename } }""",
            repository=REPOSITORY,
            key=name,
        )


def launch(site: Site, job: str, partition: str | None = None, *assets: str) -> str:
    """Launch a job of the study, or some of its assets; the run's id."""
    tags = [] if partition is None else [{"key": "dagster/partition", "value": partition}]
    selector: dict[str, Any] = {**REPOSITORY, "jobName": f"tiny_{job}"}
    if assets:
        selector["assetSelection"] = [{"path": ["tiny", *name.split("/")]} for name in assets]
    answer = site.ask(
        """mutation Launch($execution: ExecutionParams!) { launchRun(executionParams: $execution) { __typename
             ... on LaunchRunSuccess { run { id } } ... on PythonError { message } } }""",
        execution={"selector": selector, "executionMetadata": {"tags": tags}, "runConfigData": {}},
    )["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return str(answer["run"]["id"])


def cancel(site: Site, run: str) -> None:
    """Ask a run to end, as the button does."""
    answer = site.ask("mutation Stop($run: String!) { terminateRun(runId: $run) { __typename } }", run=run)
    assert answer["terminateRun"]["__typename"] == "TerminateRunSuccess", answer


def status(site: Site, run: str) -> str:
    """The status of a run."""
    return str(runs(site)[run]["status"])


def ended(site: Site, run: str, seconds: float = 300) -> str:
    """The status in which a run ends."""
    return str(
        wait_for(
            lambda: found if (found := status(site, run)) not in IN_PROGRESS else None,
            f"the end of run {run}",
            seconds,
        )
    )


def quiet(site: Site) -> bool:
    """Whether no run is queued or in progress."""
    return not {run["status"] for run in runs(site).values()} & IN_PROGRESS
