"""What the page computes and says, function by function: numbers, dates, plurals, errors, grids."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.process

REPOSITORY = Path(__file__).resolve().parents[2]
STUDIO = REPOSITORY / "studio"
# TypeScript is compiled as it is read.
_RUN = """
const fs = require('fs');
const path = require('path');
const ts = require('typescript');
const { languages, timeZone, code, given } = JSON.parse(fs.readFileSync(0, 'utf8'));
process.env.TZ = timeZone;
const compilerOptions = {
  module: 'commonjs', target: 'es2022', jsx: 'react-jsx', jsxImportSource: 'preact',
  esModuleInterop: true,
};
for (const ending of ['.ts', '.tsx'])
  require.extensions[ending] = (module, file) => module._compile(
    ts.transpileModule(fs.readFileSync(file, 'utf8'), { compilerOptions }).outputText, file);
const nothing = () => {};
const storage = () => {
  const kept = new Map();
  return {
    getItem: (k) => kept.get(k) ?? null,
    setItem: (k, v) => kept.set(k, v),
    removeItem: (k) => kept.delete(k),
  };
};
const set = (name, value) =>
  Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
set('navigator', { languages, language: languages[0] });
set('location', { hash: '', origin: 'http://127.0.0.1', href: 'http://127.0.0.1/' });
set('localStorage', storage());
set('sessionStorage', storage());
set('window', globalThis);
set('document', {
  hidden: false, addEventListener: nothing, documentElement: { dataset: {}, lang: '' },
  querySelector: () => null, createElement: () => ({}),
});
set('addEventListener', nothing);
set('BroadcastChannel', class { postMessage() {} addEventListener() {} });
const load = (name) => require(path.resolve('src', name));
(async () => {
  const words = load('i18n/index.ts');
  await words.startLanguage();
  const run = new Function('load', 'given', `return (async () => {${code}})()`);
  process.stdout.write(JSON.stringify((await run(load, given)) ?? null));
  process.exit(0);
})();
"""
_WORDS = """
const { number, usd, moment, fullDay, duration, plural, readNumber, splitNumbers, plain } =
  load('i18n/index.ts');
return {
  usd: usd(0.96), moment: moment('2026-11-26T19:00:00Z'),
  day: fullDay('2026-08-01'), duration: duration(3.14), thousands: number(12345),
  states: [1, 3].map((n) => plural('state.succeeded', n)),
  read: given.read.map((text) => readNumber(text)),
  split: given.split.map((text) => splitNumbers(text)), plain: [0.5, 12345.25].map(plain),
};
"""
_READ = ["7,5", "7.5", "1.234,5", "1,234.5", "-0,25", "\u22121", "", "x", "1,5,5", "0x10", "1e3"]
_SPLIT = ["3,5; 7", "1,5, 3", "0; 0,5; 1", "3\n5"]


def in_page(code: str, *, languages: list[str], given: Any = None) -> Any:
    """What `code` returns; `load("i18n/index.ts")` is a module of the page.

    `given` is what `code` is given, `languages` are the browser's; times are UTC.
    """
    if shutil.which("node") is None or not (STUDIO / "node_modules" / "typescript").exists():
        pytest.skip("needs Node and `npm ci` in studio/")
    asked = {"languages": languages, "timeZone": "UTC", "code": code, "given": given}
    done = subprocess.run(
        ["node", "-e", _RUN],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=STUDIO,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


_ENGLISH = {"duration": "3.1 s", "states": ["1 finished", "3 finished"]}
_SPANISH = {"states": ["1 terminada", "3 terminadas"]}
_POINT = {"thousands": "12,345", "plain": ["0.5", "12345.25"], "duration": "3.1 s"}
_COMMA = {"thousands": "12.345", "plain": ["0,5", "12345,25"], "duration": "3,1 s"}
_BRITISH = {"usd": "US$0.96", "moment": "26 Nov 2026, 19:00", "day": "1 August 2026"}
_AMERICAN = {"usd": "$0.96", "moment": "Nov 26, 2026, 7:00 PM", "day": "August 1, 2026"}
_OF_SPAIN = {"usd": "0,96 US$", "moment": "26 nov 2026, 19:00", "day": "1 de agosto de 2026"}


@pytest.mark.parametrize(
    ("languages", "told"),
    [
        (["en-GB"], _ENGLISH | _POINT | _BRITISH),
        (["en-US"], _ENGLISH | _POINT | _AMERICAN),
        (["es-ES"], _SPANISH | _COMMA | _OF_SPAIN),
        # Mexico has a decimal point, whatever Spain does.
        (["es-MX", "en"], _SPANISH | _POINT),
    ],
)
def test_numbers_dates_and_amounts_are_the_regions(
    languages: list[str], told: dict[str, object]
) -> None:
    found = in_page(_WORDS, languages=languages, given={"read": _READ, "split": _SPLIT})
    # Which of its spaces do not break is each version's own choice.
    shown = {n: re.sub(r"\s", " ", v) if isinstance(v, str) else v for n, v in found.items()}

    assert {name: shown[name] for name in told} == told
    # What is read is the same everywhere: a comma and a point both part the decimals.
    read = [7.5, 7.5, 1234.5, 1234.5, -0.25, -1, None, None, None, None, None]
    assert found["read"] == read
    assert found["split"] == [["3,5", "7"], ["1,5", "3"], ["0", "0,5", "1"], ["3", "5"]]


def refused_for() -> set[tuple[str, str]]:
    """(error code, reason) of every refusal in the backend's source that names a reason."""
    found = set()
    for path in (REPOSITORY / "backend" / "app").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
                continue
            code = re.sub(r"(?<!^)(?=[A-Z])", "_", call.func.id).upper()
            for keyword in call.keywords:
                if keyword.arg == "details" and isinstance(keyword.value, ast.Dict):
                    for key, value in zip(keyword.value.keys, keyword.value.values, strict=True):
                        if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                            found |= {(code, str(value.value))} if key.value == "reason" else set()
    return found


# The code's own sentence says it all, or the page can do nothing that the reason would change.
_ENOUGH = {
    "INVALID_REQUEST", "INVALID_PROMPT", "LORA_DOWNLOAD_FAILED", "IMAGE_DOWNLOAD_FAILED",
    "GENERATION_FAILED", "MODEL_LOAD_FAILED", "REQUEST_TIMEOUT",
}  # fmt: skip


@pytest.mark.parametrize("language", ["en", "es"])
def test_each_reason_of_a_refusal_has_a_sentence_with_its_facts(language: str) -> None:
    reasons = sorted(one for one in refused_for() if one[0] not in _ENOUGH)
    assert {("CONFLICT", "in_use"), ("LORA_LOAD_FAILED", "taken_down")} <= set(reasons)
    facts = {"avatars": 2, "contents": 1, "name": "Ink", "base_model": "a", "loaded": "b"}
    faults = [
        {"code": code, "field": None, "details": {**facts, "reason": reason}}
        for code, reason in reasons
    ]
    code = "const { explainFault } = load('server/explain.ts'); return given.map(explainFault);"
    told = in_page(code, languages=[language], given=faults)
    words = json.loads((STUDIO / f"src/i18n/{language}.json").read_text())
    for (error, reason), text in zip(reasons, told, strict=True):
        assert f"error.{error}.{reason}" in words, (error, reason)
        assert "{" not in text, text
        assert text != words[f"error.{error}"], (error, reason)


_AXES = """
const store = load('state/store.ts');
const axes = load('drafting/axes.ts');
const range = (minimum, maximum) => ({ minimum, maximum });
const limits = {
  prompt_max_chars: 500, min_side: 64, max_side: 256, multiple_of: 8, native_size: 128,
};
const by = {
  limits, steps: range(1, 100), cfg: range(0, 30), lora_scale: range(-2, 2), schedulers: [],
};
store.loras.value = [{ id: 'ink', name: 'Ink', default_scale: 0.8 }];
"""


def test_a_grids_values_are_read_as_they_are_written() -> None:
    code = (
        _AXES
        + """
    const { valuesProblem, pairProblem } = axes;
    const written = (parameter, text) => axes.valuesOf({ parameter, text, chosen: [] });
    const axis = (parameter, ...values) => ({ parameter, values });
    const pair = (x, y, prompt = '') =>
      ['x', 'y'].map((name) => pairProblem(name, { x, y }, prompt) !== null);
    const ink = { lora_model_id: 'ink', scale: 1 };
    return {
      read: given.map((text) => written('cfg', text)),
      words: written('words', 'red; a pear, ripe ;; blue'),
      prompts: written('prompt', 'a pear, ripe\\n\\n a fig; blue \\n'),
      wrong: [['cfg', []], ['cfg', [3, 3]], ['cfg', [31]], ['steps', [1.5]], ['seed', [-1]],
        ['lora:x', [2.1]], ['cfg', [NaN]], ['lora', [-3]], ['prompt', ['x'.repeat(501)]],
        ['size', ['64x63']], ['size', ['512x64']], ['which_lora', [null, { lora_model_id: 'x' }]],
        ['which_lora', [ink, ink]]].map(([p, v]) => valuesProblem(p, v, by) !== null),
      right: [['cfg', [3.5]], ['steps', [1, 100]], ['seed', [2 ** 32 - 1]], ['lora:x', [-2, 0]],
        ['prompt', ['a', 'b']], ['size', ['64x256', '256x64']], ['which_lora', [null, ink]]]
        .map(([p, v]) => valuesProblem(p, v, by)),
      pairs: [
        pair(axis('cfg', 3), axis('cfg', 5)),
        pair(axis('words', 'red', 'blue'), axis('words', 'apple'), 'a red, apple'),
        pair(axis('words', 'red', 'blue'), axis('words', 'red'), 'a red, apple'),
        pair(axis('words', 'red'), axis('cfg', 3), 'a hundred árboles'),
        pair(axis('words', 'rbol'), axis('cfg', 3), 'árbol'),
        pair(axis('words', 'c++ (x)'), axis('cfg', 3), 'in c++ (x), of'),
        pair(axis('words', 'red'), axis('prompt', 'a red pear', 'a fig'), 'red'),
        pair(axis('lora:ink', 1), axis('which_lora', null, ink)),
      ],
    };
    """
    )
    given = ["0..1 x5", "0,5..1,5 x3", "1; 2..4 x2", "3,5; 7", "x"]
    found = in_page(code, languages=["es-ES"], given=given)

    assert found["read"] == [[0, 0.25, 0.5, 0.75, 1], [0.5, 1, 1.5], [1, 2, 4], [3.5, 7], [None]]
    assert found["words"] == ["red", "a pear, ripe", "blue"]
    assert found["prompts"] == ["a pear, ripe", "a fig; blue"]
    assert all(found["wrong"]), found["wrong"]
    assert found["right"] == [None] * 7
    assert found["pairs"] == [
        [False, True],
        [False, False],
        [False, True],
        [True, False],
        [True, False],
        [False, False],
        [True, False],
        [True, False],
    ]


def test_a_grids_labels_stay_short_and_its_sizes_have_their_prices() -> None:
    code = (
        _AXES
        + """
    const { differing, valueLabels } = axes;
    const { estimateGrid } = load('drafting/grids.ts');
    const drawn = {
      id: 'one', status: 'succeeded', prompt: 'a', images: [], loras: [],
      parameters: { width: 64, height: 64, steps: 10, num_images: 1 },
      timings: { denoise: 1 }, cost: { usd: 0.01, seconds: 1 },
    };
    store.keep(drawn);
    store.feed.value = ['one'];
    const whole = { width: 64, height: 64, steps: 10, num_images: 1, source: null, hires: null };
    const axis = (parameter, ...values) => ({ parameter, values });
    const ink = { lora_model_id: 'ink', scale: 0.8 };
    const which = [null, ink, { lora_model_id: 'gone', scale: 1 }, { name: 'by name' }];
    return {
      short: given.map(differing),
      loras: [false, true].map((isScaled) =>
        valueLabels({ parameter: 'which_lora', values: which, names: { gone: 'Old' } }, isScaled)),
      others: [axis('size', '64x128'), axis('words', 'red', ''), axis('cfg', 5.5)].map((one) =>
        valueLabels(one)),
      price: estimateGrid(whole, axis('size', '64x64', '128x128'), axis('steps', 10, 20)),
    };
    """
    )
    tail = ", studio light, " + "very detailed and sharp, " * 15
    given = [
        ["a pear", "a fig"],
        [f"a red apple on a table{tail}", f"a green apple on a table{tail}"],
        [f"a dog{tail}", f"a dog{tail} at night"],
        [
            "one thing, quite another one and a third",
            "something else altogether and nothing like it",
        ],
    ]
    found = in_page(code, languages=["en"], given=given)

    assert found["short"][0] == given[0]
    assert found["short"][1] == ["… red …", "… green …"]
    assert found["short"][2] == ["… sharp,", "… sharp, at night"]
    assert found["short"][3] == given[3]
    assert found["loras"] == [
        ["None", "Ink · 0.8", "Old", "by name"],
        ["None", "Ink", "Old", "by name"],
    ]
    assert found["others"] == [["64\u00a0×\u00a0128"], ["red", "–"], ["5.5"]]
    # A picture of four times the pixels takes four times as long, one of twice the steps twice.
    assert found["price"]["seconds"] == pytest.approx((1 + 4) * (1 + 2))
    assert found["price"]["usd"] == pytest.approx((1 + 4) * (1 + 2) * 0.01)


def test_a_picture_copied_as_a_call_asks_a_shell_for_just_that_picture() -> None:
    code = """
    const { asCurl } = load('state/actions.ts');
    const store = load('state/store.ts');
    store.loras.value = [{ id: 'ink', name: 'Ink' }];
    store.avatars.value = [];
    const content = {
      id: 'one', prompt: given, negative_prompt: 'a "blur"', avatar_id: null, written: null,
      loras: [{ lora_model_id: 'ink', name: 'Ink', scale: 0.7 }],
      images: [{ seed: 7 }, { seed: 8 }],
      parameters: { width: 64, height: 96, steps: 9, cfg: 5.5, seed: 7, num_images: 2 },
    };
    return asCurl(content, 1);
    """
    prompt = "Vermeer's $HOME `ls` \\ girl,\nsecond line; 'quoted' !"
    called = shlex.split(in_page(code, languages=["en"], given=prompt).replace("\\\n", " "))

    assert called[:4] == ["curl", "-X", "POST", "http://127.0.0.1/api/v1/content/generate"]
    body = json.loads(called[called.index("-d") + 1])
    assert (body["prompt"], body["negative_prompt"]) == (prompt, 'a "blur"')
    # The second picture of two is one picture with the seed that made it.
    assert (body["seed"], body["num_images"]) == (8, 1)
    assert body["loras"] == [{"lora_model_id": "ink", "scale": 0.7}]
    assert (body["width"], body["height"], body["steps"], body["cfg"]) == (64, 96, 9, 5.5)
