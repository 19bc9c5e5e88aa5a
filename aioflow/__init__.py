"""aioflow: durable workflows inside your asyncio program.

A workflow is a plain class; its ``@step`` methods each return what happens next. The engine commits every transition
before it acts on it, so that a run outlives crashes, deploys and months of waiting.
"""

from aioflow import errors
from aioflow.commands import Command, complete, fail, goto, sleep
from aioflow.context import get_context, get_run
from aioflow.decorators import step, workflow
from aioflow.entities import entity_loader, entity_type
from aioflow.event_workflows import event_workflow
from aioflow.events import Event
from aioflow.model import Failure, StartOptions, Transition, WorkflowStatus
from aioflow.open_steps import action, statezero_action
from aioflow.ready import engine
from aioflow.retry import GiveUp, Retry, RetryLater
from aioflow.run import WorkflowRun
from aioflow.runtime import Engine
from aioflow.signals import SignalReceipt
from aioflow.waits import on, wait, wait_for_event

__all__ = [
    "Command",
    "Engine",
    "Event",
    "Failure",
    "GiveUp",
    "Retry",
    "RetryLater",
    "SignalReceipt",
    "StartOptions",
    "Transition",
    "WorkflowRun",
    "WorkflowStatus",
    "action",
    "complete",
    "engine",
    "entity_loader",
    "entity_type",
    "errors",
    "event_workflow",
    "fail",
    "get_context",
    "get_run",
    "goto",
    "on",
    "sleep",
    "statezero_action",
    "step",
    "wait",
    "wait_for_event",
    "workflow",
]
