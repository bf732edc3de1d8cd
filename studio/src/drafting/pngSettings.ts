// Settings that a picture or a text brings along: what this project and A1111 write into a PNG.

import type { Draft } from './draft';
import { loras as library, model } from '../state/store';

export interface Found {
  draft: Partial<Draft>;
  /** LoRAs that the text names and the library does not have. */
  missing: string[];
}

const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const MOST_TEXT = 200_000;
const CHUNK_HEAD = 8;

/** The text `parameters` in a PNG's chunks; null where it has none. */
export async function parametersIn(file: Blob): Promise<string | null> {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (PNG.some((byte, place) => bytes[place] !== byte)) return null;
  const view = new DataView(bytes.buffer);
  for (let at = PNG.length; at + CHUNK_HEAD + 4 <= bytes.length; ) {
    const length = view.getUint32(at);
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const data = bytes.subarray(at + 8, at + 8 + length);
    if (type === 'IEND') return null;
    if ((type === 'tEXt' || type === 'iTXt') && length <= MOST_TEXT) {
      const end = data.indexOf(0);
      const key = new TextDecoder('latin1').decode(data.subarray(0, end));
      if (key === 'parameters') {
        if (type === 'tEXt') return new TextDecoder('latin1').decode(data.subarray(end + 1));
        // Compressed texts are written by nobody for this key; after the flags come two names.
        if (data[end + 1] !== 0) return null;
        const language = data.indexOf(0, end + 3);
        const translated = data.indexOf(0, language + 1);
        return new TextDecoder().decode(data.subarray(translated + 1));
      }
    }
    at += CHUNK_HEAD + length + 4;
  }
  return null;
}

const LORA = /<lora:([^:>]+)(?::(-?[\d.]+))?(?::[^>]*)?>/g;

/** What A1111's text says, as far as the form has a field for it. */
export function readSettings(text: string): Found {
  const plain = text.replace(/\r\n?/g, '\n');
  const at = plain.search(/(^|\n)Steps: \d+/);
  const above = at < 0 ? plain : plain.slice(0, at);
  const facts = new Map<string, string>();
  if (at >= 0) {
    for (const [, key, quoted, bare] of plain.slice(at).matchAll(/\s*([A-Z][\w ]*): (?:"((?:[^"\\]|\\.)*)"|([^,\n]*))/g))
      facts.set(key ?? '', quoted ?? (bare ?? '').trim());
  }
  const [prompt = '', negative = ''] = above.split(/(?:^|\n)Negative prompt: /);
  const draft: Partial<Draft> = {
    prompt: prompt.replace(LORA, '').replace(/[ \t]{2,}/g, ' ').trim(),
    negative: negative.trim(),
  };
  const figure = (key: string): number | undefined => {
    const value = Number(facts.get(key));
    return facts.has(key) && Number.isFinite(value) ? value : undefined;
  };
  draft.steps = figure('Steps') ?? null;
  draft.cfg = figure('CFG scale') ?? null;
  const plainName = (name: string) => name.toLowerCase().replaceAll(/[^a-z0-9]+/g, '_');
  const sampler = plainName(facts.get('Sampler') ?? '');
  draft.scheduler = model.value?.schedulers.find((name) => name === sampler) ?? null;
  const seed = figure('Seed');
  if (seed !== undefined) Object.assign(draft, { seed, seedIsLocked: true, count: 1 });
  const size = /^(\d+)x(\d+)$/.exec(facts.get('Size') ?? '');
  if (size) Object.assign(draft, { width: Number(size[1]), height: Number(size[2]) });
  const hashes = new Map<string, string>();
  for (const part of (facts.get('Lora hashes') ?? '').split(',')) {
    const [name, hash] = part.split(':').map((one) => one.trim());
    if (name && hash) hashes.set(name, hash.toLowerCase());
  }
  const missing: string[] = [];
  const chosen: Draft['loras'] = [];
  for (const [, name = '', scale] of prompt.matchAll(LORA)) {
    const hash = hashes.get(name);
    const lora = (library.value ?? []).find(
      (one) =>
        (hash && one.sha256.startsWith(hash)) || one.name.toLowerCase() === name.toLowerCase(),
    );
    if (!lora) missing.push(name);
    else if (!chosen.some((one) => one.id === lora.id))
      chosen.push({ id: lora.id, scale: scale === undefined ? lora.default_scale : Number(scale) });
  }
  draft.loras = chosen.slice(0, model.value?.limits.max_loras ?? 8);
  draft.avatarId = null;
  return { draft, missing };
}
