"""A short storm: agents die under churn and traffic. `make chaos KILLS=200` is the long one."""

import os

import pytest

from chaos.storm import Order, play

pytestmark = [pytest.mark.lab, pytest.mark.kernel]


@pytest.mark.timeout(400)
async def test_killed_agents_lose_no_packet_no_address_and_no_rule() -> None:
    seed = int(os.environ.get("NETAGENT_CHAOS_SEED", "6"))
    outcome = await play(Order(kills=6, seed=seed, tenants_per_node=2, silent=False))
    print(outcome.text())
    assert not outcome.ledger.wrong, outcome.text()
    assert len(outcome.ledger.kills) >= 6
    assert outcome.ledger.counts["ADD"] > 6
