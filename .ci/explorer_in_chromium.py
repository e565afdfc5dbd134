"""Drives the explorer's page in Chromium; .ci/validate-explorer calls it, and describes what is checked.

There are three pages: of checkpoints/best.pt where the pipeline has run, otherwise of a model of params.yaml's sizes
with random weights; and of a Llama and a modern model of these sizes with random weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from playwright.sync_api import Page, sync_playwright

from custom_transformer.config import load_params
from custom_transformer.maths.model import CustomTransformer
from custom_transformer.maths.ops import IGNORE_INDEX
from custom_transformer.pages.explorer import explorer_page, run_checkpoints
from custom_transformer.paths import BEST, TOKENIZER
from custom_transformer.runs.checkpoint import Checkpoint, load_checkpoint
from custom_transformer.text.primer import generate_lessons
from custom_transformer.text.saved_tokenizer import load_tokenizer
from custom_transformer.text.tokenization import build_tokenizer, vocabulary_size

TOLERANCE = 1e-4  # relative to the largest number of a tensor, in float32
MILLISECONDS = {"gpt2": 100, "llama": 200, "modern": 200}  # for 60 tokens, forward and backward
PASSES = 20  # over which the time is a mean
TEXT = "Four plus five is nine. Five plus four is nine, too."  # with tokens that stand twice
LONG = "Kate finds four books, and Tom finds nine. How many are there together? " * 6
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
LLAMA = {"architecture": "llama", "n_kv_heads": 2, "tie_embeddings": False}
MODERN = {"architecture": "modern", "n_kv_heads": 2}
CHECKED = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def random_tokenizer() -> Any:
    """A tokenizer of the default corpus."""
    texts = (lesson.text for lesson in generate_lessons(0, "train", 2000))
    return build_tokenizer(load_params("params.yaml").data, texts)


def random_checkpoint(vocab_size: int, **changes: Any) -> Checkpoint:
    """A model of params.yaml's sizes but for the changes, whose norms are not 1 and biases not 0."""
    sizes = load_params("params.yaml").model.model_dump(exclude={"architecture", "bias"} if changes else set())
    model = CustomTransformer({**sizes, "vocab_size": vocab_size, **changes}, seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters.values():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return Checkpoint(model.state_dict(), model.config, torch.float32, {"step": 10, "seed": 0})


class Visit:
    """One page in the browser. Whatever the page complains of, or asks of a network, is kept."""

    def __init__(self, page: Page, address: str, axe: str, pictures: Path):
        self.page, self.axe, self.pictures = page, axe, pictures
        self.complaints: list[str] = []
        page.on("console", lambda m: self.complaints.append(f"{m.type}: {m.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error.stack)[:500]))
        page.on("request", lambda r: self.complaints.append(r.url) if r.url != address else None)
        page.goto(address)
        self.expect("window.explorer !== undefined", "the page does not start")

    def run(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def press(self, name: str, exact: bool = True) -> None:
        self.page.get_by_role("button", name=name, exact=exact).first.click()

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def type(self, text: str) -> None:
        self.page.fill("#text", text)

    def expect(self, script: str, what: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.run(script):
            if time.monotonic() > end:
                sys.exit(f"FAILED: {what}")
            time.sleep(0.05)

    def picture(self, name: str) -> None:
        self.pictures.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=self.pictures / f"{name}.png")

    def accessible(self, state: str) -> None:
        self.run(self.axe + "; true")
        found = self.run("async (tags) => (await axe.run(document, {runOnly: tags})).violations", CHECKED)
        for violation in found:
            nodes = "; ".join(node["html"][:160] for node in violation["nodes"][:4])
            self.complaints.append(f"axe, {state}: {violation['id']} ({violation['help']}): {nodes}")


def check_numbers(visit: Visit, checkpoint: Checkpoint, tokenizer: Any) -> None:
    """Tokens, loss, logits and every gradient of two texts beside Python's."""
    model = checkpoint.build_model()
    worst = 0.0
    for text in (TEXT, LONG):
        visit.type(text)
        found = visit.run(
            """() => { const s = explorer.session; s.forward(); s.backward(); return {
              ids: [...s.ids], loss: s.loss, logits: [...s.values.get("y:head").data],
              gradients: Object.fromEntries([...s.gradients].map(([n, t]) => [n, [...t.data]])) }; }"""
        )
        room = checkpoint.config.max_seq_len - 1
        ids = [tokenizer.eos_token_id, *tokenizer.encode(text, add_special_tokens=False)[:room]]
        assert found["ids"] == ids, "the page's tokens differ from the tokenizer's"
        inputs, labels = torch.tensor([ids]), torch.tensor([[*ids[1:], IGNORE_INDEX]])
        logits, loss = model.forward(inputs), model.loss(inputs, labels)
        model.loss_backward()
        expected = {"loss": loss, "logits": logits, **model.gradients}
        got = {"loss": [found["loss"]], "logits": found["logits"], **found["gradients"]}
        assert got.keys() == expected.keys()
        for name, tensor in expected.items():
            error = (torch.tensor(got[name]) - tensor.flatten()).abs().max() / tensor.abs().max()
            worst = max(worst, float(error))
            assert error < TOLERANCE, f"{name} is off by {error:.1e}"
        print(f"{len(ids):4} tokens: loss, logits and {len(model.gradients)} gradients within {worst:.1e} of Python's")


def check_time(visit: Visit, most: float) -> None:
    """In processor time, so that other programs on the machine do not count."""
    browser = visit.page.context.new_cdp_session(visit.page)
    browser.send("Performance.enable", {"timeDomain": "threadTicks"})

    def used() -> float:
        return next(
            m["value"] for m in browser.send("Performance.getMetrics")["metrics"] if m["name"] == "TaskDuration"
        )

    passes = """(count) => {
      const s = explorer.session, found = [];
      s.read(explorer.tokenizer.encode(explorer.text).slice(0, 60));
      for (let i = 0; i < count; i++) {
        s.forward();
        s.backward();
        found.push(s.milliseconds.forward + s.milliseconds.backward);
      }
      return found;
    }"""
    visit.run(passes, 10)  # the browser compiles what runs often
    before = used()
    times = visit.run(passes, PASSES)
    milliseconds = 1000 * (used() - before) / PASSES
    print(f"  60 tokens forward and backward: {milliseconds:.0f} ms of the processor, {min(times):.0f} by the clock")
    assert milliseconds < most, "too slow"


def check_operations(visit: Visit) -> None:
    """Every operation of the drawing, forward and backward; each heat map by mouse and by keyboard."""
    visit.type("Four plus five is nine.")
    page = visit.page
    names = visit.run("explorer.session.layers.map(({name}) => name)")
    for direction in ("Forward", "Backward"):
        for name in names:
            page.locator(f'.drawing [data-key="{name}"]').click()
            visit.press(direction)
            visit.expect(f"explorer.layer === '{name}' && explorer.direction === '{direction.lower()}'", name)
            maps = page.locator(".operation canvas[tabindex]")
            assert maps.count() or name == "loss", f"{name}: no heat map"
            for i in range(min(3, maps.count())):
                maps.nth(i).click(position={"x": 3, "y": 3})
                visit.expect("document.querySelector('.inspector .value')", f"{name}: a click explains nothing")
            if maps.count():
                maps.first.focus()
                page.keyboard.press("ArrowRight")
                page.keyboard.press("Enter")
                wrong = page.locator(".measured.bad")
                assert wrong.count() == 0, f"{name}: {wrong.first.inner_text()}"
    units = names[names.index("blocks.0.down") - 1]
    page.locator(f'.drawing [data-key="{units}"]').click()
    for key, name in (("ArrowUp", "blocks.0.down"), ("ArrowDown", units), ("End", "loss"), ("Home", "token_embedding")):
        page.keyboard.press(key)
        visit.expect(f"explorer.layer === '{name}'", f"{key} in the drawing")
    visit.press("↑ above")
    visit.press("↓ below")


def check_backward(visit: Visit) -> None:
    """The steps of the backward, which play by themselves too."""
    visit.tab("Predict")
    visit.press("▼ backward")
    visit.expect("explorer.step >= 1", "the backward does not play", 5)
    visit.press("❚❚ pause")
    last = visit.run("explorer.steps.length - 1")
    while visit.run("explorer.step") < last:
        visit.press("next step ▶")
        if visit.run("explorer.layer") == "blocks.0.norm_2":
            visit.picture("backward-residual-sum")
    visit.picture("backward-tied-table")
    visit.press("◀ step back")
    assert visit.run("explorer.step") == last - 1
    visit.press("▲ forward again")
    assert visit.run("explorer.step") == -1


def check_inspector(visit: Visit) -> None:
    """From a gradient through its factors down to the table of tokens, and back."""
    up = visit.run("explorer.session.layers.find(({ x }) => x === 'y:blocks.0.norm_2').name")
    visit.run(f"explorer.inspect('dw:{up}.weight', [3, 5])")
    page = visit.page
    for depth in range(2, 12):
        factors = page.locator(
            ".inspector .products .factor[data-key]:not([data-key^='w:']), .inputs .factor[data-key]"
        )
        if factors.count() == 0:
            break
        factors.first.click()
        visit.expect(f"explorer.trail.length === {depth}", "a factor does not open")
    assert visit.run("explorer.trail.length") >= 5, "the way down is short"
    page.locator('.inspector [data-key="back"]').click()
    visit.run(f"explorer.inspect('y:{up}', [1, 5])")
    page.locator('.inspector [data-key="more"]').click()
    assert page.locator(".products tr").count() > 100, "not every product is shown"
    page.locator('.inspector input[data-key="axis1"]').fill("7")
    page.keyboard.press("Enter")
    assert visit.run("explorer.trail.at(-1).index.join()") == "1,7"
    page.locator(".neighbour-numbers button").last.click()
    visit.picture("inspector")
    visit.press("Close")
    assert visit.run("explorer.trail.length") == 0


def check_predict(visit: Visit) -> None:
    visit.tab("Predict")
    for i in range(visit.page.locator(".strip .token").count()):
        visit.page.locator(".strip .token").nth(i).click()
        visit.page.locator(".expectations button.factor").first.click()
    visit.press("Close")
    visit.page.focus("#checkpoint")
    for key in ("Home", "End"):
        visit.page.keyboard.press(key)
    visit.page.keyboard.press("Home")
    before = visit.run("explorer.session.loss")
    visit.picture("first-checkpoint")
    visit.run("explorer.choose_checkpoint(explorer.checkpoints.findIndex(({ exact }) => exact))")
    assert visit.run("explorer.session.loss") != before
    visit.type("")
    visit.accessible("without a text")
    visit.type("x")
    visit.type(TEXT)


def check_learn(visit: Visit) -> None:
    visit.tab("Learn")
    page = visit.page
    start = visit.run("explorer.session.loss")
    for kind in ("SGD", "AdamW"):
        page.get_by_label(kind, exact=True).check()
        for name in ("1 update", "10 updates"):
            before = visit.run("explorer.updates")
            visit.press(name)
            visit.expect(f"explorer.updates === {before + int(name.split()[0])}", name)
        assert visit.run("explorer.session.loss") < start, f"{kind} does not learn"
        visit.press("undo")
    page.locator('input[data-key="rate"]').fill("0.002")
    visit.press("until it is learnt")
    visit.expect(
        "explorer.session.loss < 0.05 && !document.querySelector('.learn [data-key=stop]')",
        "it does not learn the text",
    )
    visit.picture("learnt")
    before = visit.run("explorer.updates")
    visit.press("100 updates")
    visit.expect("document.querySelector('.learn [data-key=stop]')", "it cannot be stopped")
    # Playwright's own click would wait for the button to stand still, but the page is drawn after every few updates.
    visit.run("document.querySelector('.learn [data-key=stop]').click()")
    visit.expect("!document.querySelector('.learn [data-key=stop]')", "it does not stop")
    assert visit.run("explorer.updates") < before + 100, "it stops only at the end"
    visit.press("restore the checkpoint")
    assert visit.run("explorer.session.loss") == start


def check_untrained(visit: Visit) -> None:
    """The weights before training: each gradient beside its finite difference, and both optimisers learn from there."""
    visit.run("explorer.choose_checkpoint(0)")
    page = visit.page
    for name in visit.run("explorer.steps.map(({name}) => name)"):
        visit.run(f"explorer.look_at('{name}', 'backward')")
        maps = page.locator(".operation canvas[tabindex]")
        if maps.count():
            maps.first.click(position={"x": 40, "y": 12})
            visit.expect("document.querySelector('.inspector .value')", f"{name}: a click explains nothing")
            wrong = page.locator(".measured.bad")
            assert wrong.count() == 0, f"{name}: {wrong.first.inner_text()}"
    visit.run("explorer.look_at('blocks.0.attention', 'backward')")
    visit.picture("untrained-attention")
    visit.tab("Learn")
    start = visit.run("explorer.session.loss")
    for kind in ("SGD", "AdamW"):
        page.get_by_label(kind, exact=True).check()
        visit.press("10 updates")
        visit.expect("explorer.updates === 10", "10 updates")
        assert visit.run("explorer.session.loss") < start, f"{kind} does not learn"
        visit.picture(f"untrained-{kind}")
        visit.press("undo")
        assert visit.run("explorer.session.loss") == start
    visit.run("explorer.choose_checkpoint(explorer.checkpoints.findIndex(({ exact }) => exact))")


def check_mistakes(visit: Visit) -> None:
    """Each planted mistake: the check betrays it, or says why it cannot; training runs with it."""
    visit.tab("Mistakes")
    page = visit.page
    visit.press("check every gradient")
    visit.expect(
        "document.querySelector('.mistakes [role=status]')?.textContent.includes('gradients agree')",
        "a sound gradient is off",
    )
    radios = page.locator('input[name="mistake"]')
    for i in range(1, radios.count()):
        radios.nth(i).check()
        name, seen = visit.run("[explorer.mistake.id, explorer.mistake.seen]")
        visit.press("check every gradient")
        sign = "gradients are off" if seen else "both have the mistake"
        visit.expect(
            f"document.querySelector('.mistakes [role=status]')?.textContent.includes('{sign}')",
            f"{name} is not betrayed",
        )
        if name in ("sign", "mask"):
            visit.press("train 60 updates with and without it")
            visit.expect(
                "document.querySelector('.mistakes section .soft')?.textContent.includes('After 60')", "training"
            )
            visit.picture(f"mistake-{name}")
    visit.press("remove it")
    assert visit.run("explorer.mistake") is None


def check_tour(visit: Visit) -> None:
    visit.press("take the tour")
    steps = 0
    while visit.page.locator(".tour").is_visible():
        steps += 1
        assert visit.page.locator(".toured").count(), f"the tour's step {steps} marks nothing"
        visit.picture(f"tour-{steps:02}")
        visit.page.locator('.tour [data-key="next"]').click()
    assert steps >= 10
    visit.press("remove it")


def check_links(visit: Visit) -> None:
    """Addresses of places; and, in the site, links to the book and to ops.py."""
    visit.run("location.hash = '#cross_entropy'")
    visit.expect("explorer.layer === 'loss' && explorer.direction === 'backward'", "#cross_entropy leads nowhere")
    visit.run("location.hash = '#update'")
    visit.expect("explorer.tab === 'learn'", "#update leads nowhere")
    visit.run("location.hash = '#nowhere'")
    visit.expect("document.querySelector('.banner').textContent.includes('nowhere')", "a missing place is not named")
    visit.run("location.hash = '#linear'")
    visit.expect("explorer.missing === '' && explorer.layer.endsWith('qkv')", "#linear leads nowhere")
    assert visit.page.locator(".formula a").count() == 0, "a link that leads nowhere outside the site"
    visit.run("document.documentElement.dataset.site = ''; explorer.render()")
    links = [visit.page.locator(".formula a").nth(i).get_attribute("href") or "" for i in range(2)]
    assert links[0].startswith("source/src/custom_transformer/maths/ops.py.html#line-"), links
    assert links[1] == "book/linear.html", links
    visit.run("delete document.documentElement.dataset.site; explorer.stop_backward(); explorer.render()")


def check_access(visit: Visit) -> None:
    """axe in every state, and no page wider than the window."""
    states: dict[str, Callable[[], Any]] = {
        "predict": lambda: visit.tab("Predict"),
        "forward": lambda: visit.run("explorer.look_at('blocks.0.attention', 'forward')"),
        "backward": lambda: visit.run("explorer.go_to_step(9); explorer.inspect('dw:blocks.0.down.weight', [3, 5])"),
        "learn": lambda: visit.tab("Learn"),
        "mistakes": lambda: visit.run("explorer.tab = 'mistakes'; explorer.plant('sign')"),
        "tour": lambda: visit.press("take the tour"),
    }
    for scheme in ("light", "dark"):
        visit.page.emulate_media(color_scheme=scheme)
        for width in (1280, 800):
            visit.page.set_viewport_size({"width": width, "height": 860})
            for state, go in states.items():
                go()
                visit.accessible(f"{state}, {scheme}, {width}")
                visit.picture(f"{state}-{scheme}-{width}")
                wide = visit.run("document.documentElement.scrollWidth - innerWidth")
                assert wide <= 0, f"{state} is {wide} pixels wider than {width}"
            visit.press("leave the tour")
            visit.run("explorer.plant(null); explorer.trail = []; explorer.stop_backward(); explorer.render()")
    visit.page.emulate_media(color_scheme="light")
    for _ in range(3):
        visit.page.locator('[data-key="theme"]').click()
    visit.page.locator(".glossary summary").click()
    visit.accessible("glossary")


CHECKS: dict[str, Callable[[Visit], None]] = {
    "operations": check_operations,
    "backward": check_backward,
    "inspector": check_inspector,
    "predict": check_predict,
    "learn": check_learn,
    "untrained": check_untrained,
    "mistakes": check_mistakes,
    "tour": check_tour,
    "links": check_links,
    "access": check_access,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"one of {', '.join(CHECKS)}; all without one")
    for name in ("chromium", "axe", "pictures"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        if BEST.exists() and TOKENIZER.exists():
            checkpoint = load_checkpoint(BEST)
            tokenizer, others = load_tokenizer(TOKENIZER, checkpoint.metadata.get("tokenizer")), run_checkpoints(BEST)
            print(f"{BEST} of the run here")
        else:
            tokenizer, others = random_tokenizer(), []
            checkpoint = random_checkpoint(vocabulary_size(tokenizer))
            print("random weights: dvc repro has made no checkpoint here")
        random = [random_checkpoint(checkpoint.config.vocab_size, **changes) for changes in (LLAMA, MODERN)]
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=FLAGS.split())
        complaints = []
        for one, beside in ((checkpoint, others), *((one, []) for one in random)):
            name = one.config.architecture
            path = Path(folder) / f"{name}.html"
            path.write_text(explorer_page(one, tokenizer, TEXT, beside), "utf-8")
            print(f"{name}: {path.stat().st_size:,} bytes")
            page = browser.new_page(viewport={"width": 1280, "height": 860})
            pictures = arguments.pictures / name
            visit = Visit(page, path.as_uri(), arguments.axe.read_text("utf-8"), pictures)
            check_numbers(visit, one, tokenizer)
            check_time(visit, MILLISECONDS[name])
            for check in arguments.checks or CHECKS:
                visit.type(TEXT)
                CHECKS[check](visit)
                print(f"  {check}: fine", flush=True)
            complaints += [f"{name}: {complaint}" for complaint in visit.complaints]
        browser.close()
    if complaints:
        sys.exit("FAILED:\n" + "\n".join(dict.fromkeys(complaints)))
    print(f"the explorer is valid; {len(list(arguments.pictures.rglob('*.png')))} screenshots")


if __name__ == "__main__":
    main()
