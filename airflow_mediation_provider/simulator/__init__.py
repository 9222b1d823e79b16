"""A simulator of Zuora Mediation for tests, demos and the CI of users.

From a shell: ``python -m airflow_mediation_provider.simulator --help``. From Python::

    from airflow_mediation_provider.simulator import SimulatorConfig, running_simulator

    with running_simulator(SimulatorConfig(time_scale=0.1)) as sim:
        ...  # point a connection at sim.url
        assert sim.log(kind="start")

It implements the documented API and nothing else; what Zuora leaves open is a setting. No product code imports it.
"""

from __future__ import annotations

from airflow_mediation_provider.simulator.callout_config import CalloutConfig, DeliverySettings
from airflow_mediation_provider.simulator.config import (
    MeterConfig,
    RunPlan,
    SimulatorConfig,
    completes,
    debug_ends,
    demo_meters,
    ends,
    streams,
)
from airflow_mediation_provider.simulator.running import Simulator, running_simulator
from airflow_mediation_provider.simulator.sessions import Refusal, SessionChange

__all__ = [
    "CalloutConfig",
    "DeliverySettings",
    "MeterConfig",
    "Refusal",
    "RunPlan",
    "SessionChange",
    "Simulator",
    "SimulatorConfig",
    "completes",
    "debug_ends",
    "demo_meters",
    "ends",
    "running_simulator",
    "streams",
]
