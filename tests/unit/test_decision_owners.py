"""Each decision about a session has one owner, and all code that needs it calls that owner.

The table below lists the owners, and the modules that had their own version before. ``pytest -s`` prints it with all
present callers, as found in the source.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.test_frozen_names import found
from tests.unit.test_import_directions import PACKAGE, modules, nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Decision:
    """A decision and its owner.

    :param question: what is decided
    :param owner: ``module:name`` within the package
    :param askers: modules that must call the owner, because they had their own version before
    """

    question: str
    owner: str
    askers: tuple[str, ...]


TABLE = (
    Decision(
        "which statuses end a session",
        "protocol.status:ANY_TERMINAL",
        (
            "protocol.waits.condition",
            "protocol.sessions.lifecycle",
            "protocol.sessions.verdict",
            "journal.health",
            "journal.replay",
        ),
    ),
    Decision(
        "by which a poll may end it",
        "protocol.status:ENDS_BY_POLL",
        ("journal.writer", "operators.meter", "operators.stop", "protocol.waits.stop_policy"),
    ),
    Decision(
        "which status an argument names",
        "protocol.status:status_name",
        ("protocol.waits.condition", "protocol.sessions.asset_uri", "tasks.arguments"),
    ),
    Decision(
        "whether a poll may show a session of a run type",
        "protocol.status:may_show",
        ("protocol.waits.poll_evidence", "protocol.waits.poll_evidence"),
    ),
    Decision(
        "which fields of a body are the event's", "protocol.callouts.fields:event_fields", ("protocol.callouts.parse",)
    ),
    Decision(
        "which instant a text of a tenant is",
        "protocol.callouts.tenant_times:read_time",
        ("protocol.callouts.parse", "protocol.callouts.history", "protocol.callouts.setup"),
    ),
    Decision("whether a text stands for no value", "protocol.status:names_nothing", ("protocol.callouts.fields",)),
    Decision(
        "what is longer or later than usual of a meter",
        "protocol.sessions.usual:Tempo",
        ("journal.meters",),
    ),
    Decision("which id a connection has", "protocol.ids:id_in_use", ("api_server.connections",)),
    Decision("which schedules an arrival fits", "protocol.sessions.asset_uri:arrival_uris", ("journal.asset_events",)),
    Decision("which run type a report names", "protocol.status:run_type_of_report", ("protocol.callouts.parse",)),
    Decision("which run type a session has", "protocol.status:run_type_of_reports", ("protocol.sessions.lifecycle",)),
    Decision(
        "which run types an argument names",
        "protocol.status:run_types_of",
        ("protocol.waits.condition", "protocol.sessions.asset_uri", "tasks.arguments"),
    ),
    Decision("what the reports of a session come to", "protocol.sessions.lifecycle:fold", ("journal.writer",)),
    Decision("the best known status of a session", "protocol.sessions.verdict:best_known", ("journal.writer",)),
    Decision("what a poll proves", "protocol.waits.poll_evidence:PollEvidence", ("protocol.waits.tracker",)),
    Decision(
        "whether the wait is over",
        "protocol.waits.wait:SessionWait",
        ("worker.waiting", "triggers.meter_session", "triggerer.hub"),
    ),
    Decision(
        "when a window is over", "protocol.waits.wait:SessionWait.receive_window", ("feed.worker", "triggerer.hub")
    ),
    Decision(
        "whether a session is of another meter",
        "protocol.waits.wait:SessionWait.receive",
        ("feed.worker", "triggerer.hub"),
    ),
    Decision(
        "whether callouts can be relied on",
        "protocol.waits.feed_status:FeedMonitor",
        ("triggerer.feed_reader", "feed.worker"),
    ),
    Decision(
        "what of the callout history is read next, in which zone, and how late it is",
        "protocol.callouts.cursor:HistoryCursor",
        ("journal.history", "journal.health"),
    ),
    Decision("what a refusal of Zuora means", "protocol.zuora.refusals:refusal", ("protocol.zuora.flow",)),
    Decision(
        "whether an export is over, and when it is polled",
        "protocol.waits.export_wait:ExportWait",
        ("operators.audit", "triggers.audit"),
    ),
    Decision(
        "whether refusals and silence last",
        "protocol.waits.wait_result:Outage",
        ("protocol.waits.wait", "protocol.waits.export_wait"),
    ),
    Decision(
        "whether the meter may be stopped",
        "protocol.waits.stop_policy:why_not_stop",
        ("worker.run_stop", "triggers.meter_session"),
    ),
    Decision(
        "whether the task was cleared",
        "tasks.state:was_cleared",
        ("worker.run_state", "operators.audit", "tasks.memory"),
    ),
    Decision("whether a run starts anew", "worker.run_state:why_new_generation", ("operators.meter",)),
    Decision("which session an object means", "protocol.waits.condition:subject_of", ("tasks.arguments",)),
    Decision(
        "what a task hands on of a session",
        "protocol.sessions.session_result:session_result",
        ("protocol.waits.wait", "operators.meter", "journal.writer", "journal.replay"),
    ),
    Decision("which process owns a wait", "journal.task_reports:record_waits", ("api_server.feed",)),
    Decision(
        "which statuses lead on to which",
        "protocol.sessions.lifecycle:reachable",
        ("protocol.maintenance",),
    ),
    Decision(
        "to which address callouts are sent",
        "protocol.urls:callout_address",
        ("commands",),
    ),
    Decision(
        "how the API server is found and asked",
        "feed.flow:SignedCalls",
        ("feed.worker", "feed.long_poll"),
    ),
)


def tree(module: str) -> ast.Module:
    found = nodes(modules()[module])[0]
    assert isinstance(found, ast.Module)
    return found


def dotted(node: ast.AST) -> str:
    """Return a name with all of its parts; what it is an attribute of may be no name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@cache
def used_in(module: str) -> frozenset[str]:
    """Return the names in a module, with all their parts."""
    return frozenset(dotted(node) for node in nodes(modules()[module]) if isinstance(node, ast.Name | ast.Attribute))


@cache
def imports_from(module: str) -> tuple[ast.ImportFrom, ...]:
    return tuple(node for node in nodes(modules()[module]) if isinstance(node, ast.ImportFrom))


def asks(module: str, owner: str) -> bool:
    """Return whether a module uses a name of another one: imported by name, or by that module's own name.

    A method is called on the result of another function, so only the method's name shows.
    """
    home, _, name = owner.partition(":")
    used = used_in(module)
    if "." in name:
        return module != home and any(each.endswith(f".{name.partition('.')[2]}") for each in used)
    imported = set()
    for node in imports_from(module):
        for each in node.names:
            path = f"{node.module}.{each.name}"
            if path == f"{PACKAGE}.{home}.{name}":
                imported.add(each.asname or each.name)
            elif path == f"{PACKAGE}.{home}":
                imported.add(f"{each.asname or each.name}.{name}")
    return bool(imported & used)


def who_asks(owner: str) -> list[str]:
    return [module for module in modules() if asks(module, owner)]


@cache
def nodes_by_type() -> dict[type[ast.AST], list[tuple[str, ast.AST]]]:
    """Return the nodes of all modules, each with its module."""
    found = defaultdict(list)
    for module, file in modules().items():
        for node in nodes(file):
            found[type(node)].append((module, node))
    return found


def places(finds: Callable[[Any], bool], *types: type[ast.AST]) -> dict[str, int]:
    """Return how often a pattern is found in each module, among the nodes of these types."""
    return Counter(module for each in types for module, node in nodes_by_type()[each] if finds(node))


@pytest.mark.parametrize("decision", TABLE, ids=lambda decision: decision.owner)
def test_each_owner_exists_and_its_callers_use_it(decision: Decision):
    assert found(decision.owner.replace(":", ".")) is not None
    assert [module for module in decision.askers if not asks(module, decision.owner)] == []


def test_no_other_module_defines_the_name_of_an_owner():
    names = {decision.owner.partition(":")[2] for decision in TABLE if "." not in decision.owner.partition(":")[2]}
    defined = [name for module in modules() for node in tree(module).body for name in defines(node)]
    assert sorted(name for name in defined if name in names) == sorted(names)


def defines(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
    return [each.id for each in targets if isinstance(each, ast.Name)]


def test_the_table_of_decisions_can_be_printed():
    lines = list(rows())
    print("", *lines, sep="\n")
    assert len(lines) == len(TABLE) + 2


def rows() -> Iterator[str]:
    cells = [("decision", "owner", "callers")]
    cells += [(each.question, each.owner, ", ".join(who_asks(each.owner)) or "-") for each in TABLE]
    first, second = (max(len(row[column]) for row in cells) for column in (0, 1))
    for number, (question, owner, askers) in enumerate(cells):
        yield f"{question:{first}}  {owner:{second}}  {askers}"
        if number == 0:
            yield f"{'-' * first}  {'-' * second}  {'-' * 8}"


LITERALS = (ast.Set, ast.Tuple, ast.List)


def names_in(node: ast.Set | ast.Tuple | ast.List) -> set[str]:
    """Return the texts and the last parts of the names in a literal: ``SessionStatus.FAILED`` as ``FAILED``."""
    return {
        each.attr if isinstance(each, ast.Attribute) else str(each.value)
        for each in node.elts
        if isinstance(each, ast.Attribute | ast.Constant)
    }


class TestTwinsAreGone:
    """Code that was in several modules, with different behaviour, is in one module."""

    def test_only_the_owner_lists_the_final_statuses(self):
        """The fold lists them in another order: the more severe one first."""
        ends = {"COMPLETED", "FAILED", "CANCELED"}
        listed = places(lambda node: ends <= names_in(node), *LITERALS)
        assert set(listed) == {"protocol.status", "protocol.sessions.lifecycle"}

    def test_the_task_states_set_by_a_user_are_listed_in_one_place(self):
        states = {"failed", "skipped", "removed"}
        listed = places(lambda node: states <= names_in(node), *LITERALS)
        assert listed == {"protocol.waits.stop_policy": 1}

    def test_every_stop_except_that_of_the_stop_operator_calls_the_policy(self):
        def stops(node: ast.Call) -> bool:
            return ast.unparse(node.func).endswith(".stop_meter")

        policy = {*who_asks("protocol.waits.stop_policy:why_not_stop")}
        stopping = {module for module in places(stops, ast.Call) if not module.startswith("hooks.")}
        assert stopping - policy == {"operators.stop"}

    def test_a_clear_is_detected_in_one_place(self):
        def compares(node: ast.Compare) -> bool:
            return bool(re.search(r"\bmax_tries\b|'generation'", ast.unparse(node)))

        assert places(compares, ast.Compare) == {"tasks.state": 1}

    def test_the_task_state_store_is_accessed_in_one_place(self):
        assert places(lambda node: node.value == "task_state_store", ast.Constant) == {"tasks.state": 1}

    def test_evidence_is_added_to_a_session_in_one_place(self):
        def splices(node: ast.Dict) -> bool:
            # ``None`` is the key of an unpacked dict in a literal.
            return {None, "evidence", "certain"} <= {getattr(key, "value", None) for key in node.keys}

        assert places(splices, ast.Dict) == {"protocol.sessions.session_result": 1}

    def test_the_silence_of_the_feed_is_measured_in_one_place(self):
        measured = places(lambda node: node.id == "LOST_SECONDS", ast.Name)
        assert set(measured) == {"protocol.waits.feed_status"}

    def test_the_best_known_status_is_computed_where_sessions_are_written(self):
        assert who_asks("protocol.sessions.verdict:best_known") == ["journal.writer"]

    def test_journal_entries_of_polls_are_made_in_one_place(self):
        def makes(node: ast.keyword) -> bool:
            return node.arg == "kind" and ast.unparse(node.value) == "EntryKind.POLL"

        assert places(makes, ast.keyword) == {"protocol.sessions.journal_entry": 1}

    def test_a_request_to_the_api_server_is_signed_in_one_place(self):
        assert who_asks("protocol.wire:signed_headers") == who_asks("protocol.wire:is_handshake") == ["feed.flow"]

    def test_constants_are_written_once(self):
        def writes(name: str) -> list[str]:
            return [module for module in modules() for node in tree(module).body if name in defines(node)]

        for name in ("PROTOCOL", "DEFAULT_VERSION", "_SECONDS_BETWEEN_LINES", "UNFOUND_SECONDS"):
            assert len(writes(name)) == 1, name
