"""The status page in headless Chromium, beside packets."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from netagent.agent.http import page
from netagent.records import Endpoint, Key, NetworkPolicy
from support import words
from support.browser import Browser, PageError
from support.pagebed import PageBed

pytestmark = pytest.mark.kernel

DRAWN = "document.querySelectorAll('#matrix tbody td').length > 0"
EXPLAINED = "document.getElementById('text').textContent.includes('kernel of this node')"


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with Browser() as made:
        yield made


def cell(source: str, destination: str) -> str:
    """Selector of a cell."""
    return f'#matrix td[data-from="{source}"][data-to="{destination}"]'


def only(label: str) -> NetworkPolicy:
    """A policy that lets pods with this label reach pods of x with app=b on port 80."""
    rule = words.rule([words.pods(app=label)], [words.port(80)])
    return words.policy("x/guard", words.selector(app="b"), ingress=[rule])


async def open_page(bed: PageBed, browser: Browser) -> None:
    await browser.open(f"{bed.url}/debug/")
    await browser.until(DRAWN)


def quiet(bed: PageBed, browser: Browser) -> None:
    """Nothing went wrong in the page, and it asked nobody else."""
    assert browser.console == []
    assert browser.requests
    assert [url for url in browser.requests if not url.startswith((f"{bed.url}/", "data:"))] == []


async def test_pods_cells_and_why_as_packets_have_it(bed: PageBed, browser: Browser) -> None:
    for name in ("x/a", "x/b", "x/c"):
        await bed.pod(name, app=name[-1])
    await bed.put(only("a"))
    await open_page(bed, browser)

    assert await browser.text("#node") == "node-0"
    assert await browser.text("#ready") == "ready"
    pods = {row[0]: row[1:] for row in await browser.rows("pods")}
    assert sorted(pods) == ["x/a", "x/b", "x/c"]
    assert pods["x/b"] == [" ".join(bed.places["x/b"].ips), "x/guard", "not isolated"]

    assert await browser.text(cell("x/a", "x/b")) == "TCP 80"
    assert await browser.text(cell("x/c", "x/b")) == "none"
    assert await browser.text(cell("x/b", "x/a")) == "all"
    await bed.expect(
        allowed=["x/a -> x/b 80/TCP", "x/b -> x/a 80/UDP"], denied=["x/c -> x/b 80/TCP", "x/a -> x/b 81/TCP"]
    )

    await browser.click(cell("x/a", "x/b"))
    await browser.until(EXPLAINED)
    text = await browser.text("#text")
    assert text.startswith("ALLOW  x/a -> x/b  80/TCP\n")
    assert "admitted by x/guard ingress[0]" in text
    await browser.click(cell("x/c", "x/b"))
    await browser.until("document.getElementById('text').textContent.startsWith('DENY  x/c -> x/b  80/TCP')")
    assert "label app=a wanted, pod x/c has app=c" in await browser.text("#text")
    quiet(bed, browser)


async def test_a_change_of_policy_appears_and_the_open_cell_stays_open(bed: PageBed, browser: Browser) -> None:
    for name in ("x/a", "x/b", "x/c"):
        await bed.pod(name, app=name[-1])
    await bed.put(only("a"))
    await open_page(bed, browser)
    await browser.click(cell("x/c", "x/b"))
    await browser.until("document.getElementById('text').textContent.startsWith('DENY  x/c -> x/b')")
    await bed.put(only("c"))
    await browser.until(f"document.querySelector({cell('x/c', 'x/b')!r}).textContent", "TCP 80")
    await browser.until("document.getElementById('text').textContent.startsWith('ALLOW  x/c -> x/b')")
    assert await browser.text(cell("x/a", "x/b")) == "none"
    assert (
        await browser.run("document.activeElement.dataset.from + ' ' + document.activeElement.dataset.to") == "x/c x/b"
    )
    assert await browser.run(f"document.querySelector({cell('x/c', 'x/b')!r}).getAttribute('aria-selected')") == "true"
    await bed.expect(allowed=["x/c -> x/b 80/TCP"], denied=["x/a -> x/b 80/TCP"])
    quiet(bed, browser)


async def test_hostile_names_are_text(bed: PageBed, browser: Browser) -> None:
    pod = "<img src=x onerror=window.hacked=1>"
    policy = "</script><script>window.hacked=1</script>"
    record = words.pod(f"x/{pod}", "10.244.0.2", labels={"app": '"><script>window.hacked=1</script>'})
    bed.dataplane.apply(words.put(words.namespace("x")))
    bed.dataplane.apply(words.put(record))
    endpoint = Endpoint(pod=record.key, pod_uid="", container_id="c", ifname="eth0", host_ifname="", ips=record.ips)
    bed.dataplane.restore((endpoint,))
    record_of_policy = NetworkPolicy(key=Key("x", policy), uid="p", policy_types=("Ingress",))
    bed.dataplane.apply(words.put(record_of_policy))
    await bed.settled()
    await open_page(bed, browser)
    assert [row[0] for row in await browser.rows("pods")] == [f"x/{pod}"]
    assert (await browser.rows("pods"))[0][2] == f"x/{policy}"
    assert (await browser.rows("matrix"))[0][0] == f"x/{pod}"
    await browser.run("document.querySelector('#matrix tbody tr:nth-child(2) td').click()")
    await browser.until("document.getElementById('text').textContent.includes('not isolated') || " + EXPLAINED)
    assert policy in await browser.text("#text")
    assert await browser.run("document.querySelectorAll('body img, main script').length") == 0
    assert await browser.run("typeof window.hacked") == "undefined"
    quiet(bed, browser)


async def test_arrows_enter_and_escape_are_enough(bed: PageBed, browser: Browser) -> None:
    for name in ("x/a", "x/b"):
        await bed.pod(name, app=name[-1])
    await open_page(bed, browser)
    assert await browser.run("document.querySelectorAll('#matrix [tabindex=\"0\"]').length") == 1
    await browser.run("document.querySelector('#matrix [tabindex=\"0\"]').focus()")
    await browser.press("ArrowDown")
    await browser.press("ArrowRight")
    await browser.press("ArrowLeft")
    await browser.press("Enter")
    await browser.until(EXPLAINED)
    assert (await browser.text("#text")).startswith("ALLOW  x/b -> x/a")
    await browser.run("document.getElementById('text').focus()")
    await browser.press("Escape")
    await browser.until("document.getElementById('answer').hidden")
    assert await browser.run("document.activeElement.dataset.from") == "x/b"
    quiet(bed, browser)


async def test_a_full_node_is_drawn_by_groups_and_by_pods(bed: PageBed, browser: Browser) -> None:
    bed.dataplane.apply(words.put(words.namespace("x")))
    for number in range(110):
        name, ip = f"x/p{number:03}", f"10.244.0.{number + 2}"
        bed.dataplane.apply(words.put(words.pod(name, ip, labels={"app": "ab"[number % 2]})))
        endpoint = Endpoint(
            pod=words.key(name), pod_uid="", container_id=name, ifname="eth0", host_ifname="", ips=(ip,)
        )
        bed.dataplane.restore((endpoint,))
    await bed.put(only("a"))
    await open_page(bed, browser)
    rows = await browser.rows("matrix")
    assert [row[0] for row in rows[:2]] == ["x/p000 and 54 alike", "x/p001 and 54 alike"]
    assert [row[1:3] for row in rows[:2]] == [["all", "TCP 80"], ["all", "none"]]
    await browser.click("#alike")
    await browser.until("document.querySelectorAll('#matrix tbody tr').length > 110")
    assert await browser.run("document.querySelectorAll('#matrix td.itself').length") == 110
    assert await browser.run("document.querySelectorAll('#matrix td.some').length") == 55 * 55
    await browser.run("document.getElementById('filter').value = 'P00'")
    await browser.run("document.getElementById('filter').dispatchEvent(new Event('input'))")
    await browser.until("document.querySelectorAll('#matrix tbody tr').length", 10)
    quiet(bed, browser)


async def test_an_agent_that_is_gone_is_told_and_the_last_state_stays(bed: PageBed, browser: Browser) -> None:
    await bed.pod("x/a")
    other = PageBed.serving(bed)
    url = bed.url
    async with other:
        await open_page(bed, browser)
        assert bed.url != url
    await browser.until("!document.getElementById('stale').hidden")
    assert (await browser.text("#stale")).startswith("No answer from the agent since")
    assert [row[0] for row in await browser.rows("pods")] == ["x/a"]


async def test_its_security_policy_stops_what_is_not_its_own(bed: PageBed, browser: Browser) -> None:
    await bed.pod("x/a")
    await open_page(bed, browser)
    with pytest.raises(PageError, match="TrustedHTML"):
        await browser.run("document.body.innerHTML = 'x'")
    with pytest.raises(PageError, match="Failed to fetch"):
        await browser.run("fetch('http://127.0.0.2:9/')")
    await browser.run("document.body.append(Object.assign(document.createElement('img'), {src: '/debug/status'}))")
    await browser.until("document.images[0].complete")
    refused = "\n".join(browser.console)
    assert "connect-src" in refused
    assert "img-src" in refused
    assert [url for url in browser.requests if "127.0.0.2" in url or url.endswith(":9/")] == []


async def test_the_document_needs_nothing_from_elsewhere(bed: PageBed) -> None:
    text, policy = page.document()
    assert text == Path(page.__file__).with_name("page.html").read_text()
    assert re.findall(r"\son\w+=|style=", text) == []
    assert set(re.findall(r"https?://[^\"' ]*", text)) == {"http://www.w3.org/2000/svg"}
    async with aiohttp.ClientSession() as session:
        for path in ("/", "/debug", "/debug/"):
            async with session.get(bed.url + path) as response:
                assert (response.status, response.content_type) == (200, "text/html")
                assert response.headers["Content-Security-Policy"] == policy
                assert response.headers["X-Content-Type-Options"] == "nosniff"
