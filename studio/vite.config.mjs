// Builds the page into the folder that the backend serves, with a note of what it was built from.
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join, relative, resolve } from 'node:path';
import preact from '@preact/preset-vite';
import { defineConfig } from 'vite';

const here = import.meta.dirname;
const out = resolve(here, '../backend/app/static/studio');

/** Files whose change must lead to a new build; tests/browser/studio_build.py lists the same. */
const INPUTS = ['index.html', 'package-lock.json', 'public', 'src', 'tsconfig.json', 'vite.config.mjs'];

const sha256 = (data) => createHash('sha256').update(data).digest('hex');

function filesIn(path) {
  const entries = readdirSync(path, { recursive: true, withFileTypes: true });
  return entries.filter((e) => e.isFile()).map((e) => join(e.parentPath, e.name));
}

function digests(root, paths) {
  const named = paths.map((path) => [relative(root, path).replaceAll('\\', '/'), path]);
  named.sort(([a], [b]) => (a < b ? -1 : 1));
  return Object.fromEntries(named.map(([name, path]) => [name, sha256(readFileSync(path))]));
}

/** Packages of which a part is in the built files; their licences go along. */
const SHIPPED = ['@fontsource-variable/geist', '@preact/signals', '@preact/signals-core', 'preact'];

function licences() {
  return SHIPPED.map((name) => {
    const folder = join(here, 'node_modules', name);
    const { version, license } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
    const path = join(folder, 'LICENSE');
    const text = existsSync(path) ? readFileSync(path, 'utf8').trim() : '';
    return `${name} ${version} (${license})\n\n${text}\n`;
  }).join('\n' + '-'.repeat(72) + '\n\n');
}

function buildRecord() {
  return {
    name: 'build-record',
    closeBundle() {
      writeFileSync(join(out, 'LICENSES.txt'), licences());
      const inputs = INPUTS.flatMap((name) =>
        /\./.test(name) ? [join(here, name)] : filesIn(join(here, name)),
      );
      const built = filesIn(out).filter((path) => !path.endsWith('build.json'));
      const record = { inputs: digests(here, inputs), files: digests(out, built) };
      writeFileSync(join(out, 'build.json'), JSON.stringify(record, null, 1) + '\n');
    },
  };
}

export default defineConfig({
  base: '/studio/',
  plugins: [preact({ devToolsEnabled: false, prefreshEnabled: false }), buildRecord()],
  build: {
    outDir: out,
    emptyOutDir: true,
    target: 'es2022',
    cssTarget: ['chrome123', 'firefox121', 'safari17.5'],
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: {
    port: 5173,
    // `npm run dev` beside `make serve`.
    proxy: { '/api': 'http://127.0.0.1:8000', '/files': 'http://127.0.0.1:8000' },
  },
});
