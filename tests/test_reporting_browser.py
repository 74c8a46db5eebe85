"""Reports in a real Chromium: sorting, the policy, hostile names, both colour schemes."""

import pytest
from pages import hostile_pair, write_pair

import rankscope as rs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    rs.report(*write_pair(folder / "plain")).save(folder / "plain.html")
    rs.report(hostile_pair(), alpha=2).save(folder / "hostile.html")
    return folder


class Visit:
    """An open report, and what it has said, asked for and popped up."""

    def __init__(self, chromium, path, **context):
        self.said, self.asked, self.failed = [], [], []
        self.context = chromium.new_context(viewport={"width": 1200, "height": 900}, **context)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("requestfailed", lambda request: self.failed.append(request))
        self.context.route("http*://**", lambda route: route.abort())
        self.page.goto(path.as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def outside(self):
        return [url for url in self.asked if not url.startswith(("file:", "data:"))]


@pytest.mark.parametrize("name", ["plain", "hostile"])
def test_it_opens_in_silence_and_asks_for_nothing(chromium, files, name):
    with Visit(chromium, files / f"{name}.html") as visit:
        visit.page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        assert visit.said == []
        assert visit.outside() == []
        assert len([url for url in visit.asked if url.startswith("file:")]) == 1
        assert visit.page.evaluate("window.pwned") is None
        assert visit.page.evaluate("document.scripts.length") == 1
        loaded = "[...document.images].every((i) => i.naturalWidth > 0)"
        assert visit.page.evaluate(loaded)


def test_hostile_names_are_seen_as_text(chromium, files):
    with Visit(chromium, files / "hostile.html") as visit:
        text = visit.page.evaluate("document.body.textContent")
        assert "<script>window.pwned=1</script>" in text
        assert "onerror=window.pwned=1" in text
        assert visit.page.evaluate("document.querySelectorAll('[onerror]').length") == 0
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 1200


def test_columns_sort_by_mouse_and_by_keyboard(chromium, files):
    with Visit(chromium, files / "plain.html") as visit:
        column = "table.sortable:has(caption:text-is('Every module')) >> nth=0"
        table = visit.page.locator(column)
        head = table.locator("thead th", has_text="φ of all")
        at = head.evaluate("(h) => h.cellIndex")
        values = f"(t) => [...t.tBodies[0].rows].map((r) => Number(r.cells[{at}].title))"
        before = table.evaluate(values)
        assert head.get_attribute("aria-sort") == "none"
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"
        assert table.evaluate(values) == sorted(before, reverse=True)
        head.locator("button").focus()
        visit.page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        assert table.evaluate(values) == sorted(before)
        names = table.locator("thead th", has_text="module")
        names.locator("button").click()
        assert (head.get_attribute("aria-sort"), names.get_attribute("aria-sort")) == (
            "none", "ascending"
        )  # fmt: skip
        assert visit.said == []


def test_a_row_leads_to_its_module(chromium, files):
    with Visit(chromium, files / "plain.html") as visit:
        assert not visit.page.locator("#m2").evaluate("(d) => d.open")
        visit.page.locator("a[href='#m2']").first.click()
        assert visit.page.locator("#m2").evaluate("(d) => d.open")
        visit.page.emulate_media(media="print")
        visit.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert visit.page.locator("details:not([open])").count() == 0
        visit.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert visit.page.locator("details[open]").count() == 1


def test_the_policy_stops_what_would_be_put_into_the_page(chromium, files):
    attack = """() => {
      window.stopped = [];
      const note = (event) => stopped.push(event.effectiveDirective);
      document.addEventListener("securitypolicyviolation", note);
      const script = document.createElement("script");
      script.textContent = "window.pwned = 1";
      const image = document.createElement("img");
      image.src = "http://127.0.0.1:9/x.png";
      const link = document.createElement("p");
      link.setAttribute("onclick", "window.pwned = 2");
      const style = document.createElement("style");
      style.textContent = "body { display: none }";
      document.body.append(script, image, link, style);
      link.click();
      return fetch("http://127.0.0.1:9/").then(() => "sent", () => "refused");
    }"""
    with Visit(chromium, files / "plain.html") as visit:
        assert visit.page.evaluate(attack) == "refused"
        visit.page.wait_for_timeout(50)
        stopped = set(visit.page.evaluate("window.stopped"))
        assert {"script-src-elem", "script-src-attr", "img-src", "style-src-elem"} <= stopped
        assert "connect-src" in stopped
        assert visit.page.evaluate("window.pwned") is None
        # What was asked for never left the page: the policy failed it, not the test's own route.
        reasons = [request.failure for request in visit.failed]
        assert reasons == ["csp"] * len(visit.outside()), reasons


def test_both_schemes_have_grounds_of_their_own(chromium, files):
    grounds = {}
    for scheme in ("light", "dark"):
        with Visit(chromium, files / "plain.html", color_scheme=scheme) as visit:
            paper = "getComputedStyle(document.body).backgroundColor"
            card = "getComputedStyle(document.querySelector('.paper')).backgroundColor"
            grounds[scheme] = visit.page.evaluate(f"[{paper}, {card}]")
    assert grounds["light"][0] != grounds["dark"][0]
    assert grounds["light"][1] == grounds["dark"][1] == "rgb(255, 255, 255)"


def test_a_narrow_window_needs_no_sideways_scrolling(chromium, files):
    with Visit(chromium, files / "plain.html") as visit:
        visit.page.set_viewport_size({"width": 360, "height": 700})
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 360
