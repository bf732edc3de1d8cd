"""The page's own functions, run by Node; TypeScript is compiled as it is read."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

STUDIO = Path(__file__).resolve().parents[1] / "studio"
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
