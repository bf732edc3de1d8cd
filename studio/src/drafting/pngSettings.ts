// Settings that a picture or a text brings along: what this project and A1111 write into a PNG.

import type { Draft } from './draft';
import { loras as library, model } from '../state/store';
import { readInfotext, samplerNamed } from './infotext';

export interface Found {
  draft: Partial<Draft>;
  /** LoRAs that the text names and the library does not have. */
  missing: string[];
  /** It was drawn from pictures, which a text does not bring. */
  lacksPictures: boolean;
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

/** What such a text says, as far as a request can take it up. */
export function readSettings(text: string): Found {
  const read = readInfotext(text);
  const offered = model.value?.schedulers ?? [];
  const missing: string[] = [];
  const chosen: Draft['loras'] = [];
  for (const { name, scale, sha256 } of read.loras) {
    const lora = (library.value ?? []).find(
      (one) =>
        (sha256 && one.sha256.startsWith(sha256)) || one.name.toLowerCase() === name.toLowerCase(),
    );
    if (!lora) missing.push(name);
    else if (!chosen.some((one) => one.id === lora.id))
      chosen.push({ id: lora.id, scale: scale ?? lora.default_scale });
  }
  const draft: Partial<Draft> = {
    prompt: read.prompt,
    negative: read.negative_prompt,
    styles: [],
    avatarId: null,
    loras: chosen.slice(0, model.value?.limits.max_loras ?? 8),
    steps: read.steps ?? null,
    cfg: read.cfg ?? null,
    scheduler: samplerNamed(read.scheduler, offered),
    syntax: read.prompt_syntax,
    hires: null,
    beyond: {
      ...(read.clip_skip ? { clip_skip: read.clip_skip } : {}),
      ...(read.guidance_rescale ? { guidance_rescale: read.guidance_rescale } : {}),
      // Read as A1111 reads them, words mean embeddings by themselves.
      ...(read.embeddings.length && read.prompt_syntax === 'weights'
        ? { embeddings: read.embeddings.map(({ token }) => ({ name: token })) }
        : {}),
    },
  };
  if (read.seed !== undefined) Object.assign(draft, { seed: read.seed, seedIsLocked: true, count: 1 });
  if (read.width && read.height) Object.assign(draft, { width: read.width, height: read.height });
  if (read.hires) {
    const { scale = 2, upscaler = 'latent', strength = 0.7, steps = 0, ...own } = read.hires;
    const names = ['latent', 'lanczos', ...(model.value?.limits.upscalers ?? []).map((one) => one.name)];
    draft.hires = {
      scale,
      upscaler: names.includes(upscaler) ? upscaler : upscaler.startsWith('Latent') ? 'latent' : 'lanczos',
      strength,
      steps,
    };
    const scheduler = samplerNamed(own.scheduler, offered);
    const { scheduler: _, ...words } = own;
    const more = { ...words, ...(scheduler ? { scheduler } : {}) };
    if (Object.keys(more).length) draft.beyond = { ...draft.beyond, hires: more };
  }
  const lacksPictures =
    read.strength !== undefined || read.controls.length > 0 || read.references.length > 0;
  return { draft, missing, lacksPictures };
}
