// Builds the page into the folder that the backend serves, with a note of what it was built from.
import { createHash } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import preact from '@preact/preset-vite';
import { build, defineConfig } from 'vite';

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

const LANGUAGES = ['en', 'es'];

/** Modules that the first view needs: one file, as each further one may wait for a free connection. */
const firstModules = new Set();

/**
 * The page as the server first sends it, in each language: the form drawn beforehand, what notes
 * its keys and clicks, and a word to the browser on everything that it will ask for.
 */
function firstPage() {
  const named = {};
  return {
    name: 'first-page',
    buildEnd() {
      const walk = (id) => {
        if (firstModules.has(id)) return;
        firstModules.add(id);
        this.getModuleInfo(id)?.importedIds.forEach(walk);
      };
      walk(join(here, 'src/main.tsx'));
    },
    generateBundle(_, bundle) {
      for (const chunk of Object.values(bundle)) {
        const source = relative(here, chunk.facadeModuleId ?? '');
        if (source) named[source] = chunk.fileName;
      }
    },
    async closeBundle() {
      const folder = mkdtempSync(join(tmpdir(), 'studio-first-'));
      const page = readFileSync(join(out, 'index.html'), 'utf8');
      try {
        await build({
          configFile: false,
          logLevel: 'warn',
          plugins: [preact({ devToolsEnabled: false, prefreshEnabled: false })],
          ssr: { noExternal: true },
          build: {
            ssr: join(here, 'src/first.tsx'),
            outDir: folder,
            emptyOutDir: true,
            rolldownOptions: { output: { entryFileNames: '[name].mjs', chunkFileNames: '[name].mjs' } },
          },
        });
        for (const language of LANGUAGES) {
          const { root, lost } = await drawn(join(folder, 'first.mjs'), language);
          const words = `/studio/${named[`src/i18n/${language}.json`]}`;
          const early = `/studio/${named['src/early.ts']}`;
          const head = [
            `  <link rel="modulepreload" crossorigin href="${words}">`,
            '<link rel="preload" as="fetch" crossorigin href="/api/v1/session">',
          ];
          const html = page
            .replace('<html lang="en">', `<html lang="${language}">`)
            .replace('</head>', `${head.join('\n    ')}\n  </head>`)
            // The policy forbids styles that stand in the page; the script sets them.
            .replace('<div id="app"></div>', `<div id="app">${root.replace(/ style="[^"]*"/g, '')}</div>
    <p id="lost" class="banner" role="alert" hidden>${lost}</p>
    <script src="${early}"></script>`);
          writeFileSync(join(out, language === 'en' ? 'index.html' : `index.${language}.html`), html);
        }
      } finally {
        rmSync(folder, { recursive: true });
      }
    },
  };
}

/** The form in a language, drawn with as much of a browser as that takes. */
async function drawn(module, language) {
  const stubs = {
    window: { addEventListener() {}, early: {} },
    location: { hash: '', href: '', origin: '', hostname: '' },
    document: { hidden: false, addEventListener() {} },
    addEventListener() {},
  };
  Object.assign(globalThis, stubs);
  Object.defineProperty(globalThis, 'navigator', {
    value: { languages: [language] },
    configurable: true,
  });
  return (await import(`${pathToFileURL(module)}?${language}`)).first();
}

export default defineConfig({
  base: '/studio/',
  plugins: [preact({ devToolsEnabled: false, prefreshEnabled: false }), firstPage(), buildRecord()],
  build: {
    outDir: out,
    emptyOutDir: true,
    target: 'es2022',
    cssTarget: ['chrome123', 'firefox121', 'safari17.5'],
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rolldownOptions: {
      input: ['index.html', 'src/early.ts'].map((name) => join(here, name)),
      output: { codeSplitting: { groups: [{ name: 'first', test: (id) => firstModules.has(id) }] } },
    },
  },
  server: {
    port: 5173,
    // `npm run dev` beside `make serve`.
    proxy: { '/api': 'http://127.0.0.1:8000', '/files': 'http://127.0.0.1:8000' },
  },
});
