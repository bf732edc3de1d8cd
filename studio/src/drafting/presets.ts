// Styles: words added around a prompt, and whole presets of the form; kept on this device.

import { signal } from '@preact/signals';
import type { Draft } from './draft';
import { recall, remember } from '../state/memory';

/** Of a form: everything but the seed. */
export interface Preset {
  id: string;
  name: string;
  draft: Omit<Draft, 'seed' | 'seedIsLocked'>;
}

const KEPT = 100;
export const presets = signal<Preset[]>(recall<Preset[]>('presets', []));

function set(all: Preset[]): void {
  presets.value = all.slice(0, KEPT);
  remember('presets', presets.value);
}

/** Keep the form as it is under a name; one of the same name is replaced. */
export function savePreset(name: string, { seed: _, seedIsLocked: __, ...draft }: Draft): void {
  const others = presets.value.filter((one) => one.name !== name);
  set([{ id: crypto.randomUUID?.() ?? Date.now().toString(36), name, draft }, ...others]);
}

export function dropPreset(id: string): void {
  set(presets.value.filter((one) => one.id !== id));
}

export function clearPresets(): void {
  set([]);
}

/** The built-in styles, as words that the model knows; `{prompt}` is the person's own. */
export const STYLES: Record<string, { prompt: string; negative: string }> = {
  photo: {
    prompt: '{prompt}, photograph, 35mm, natural light, sharp focus, high detail',
    negative: 'drawing, painting, illustration, blurry',
  },
  cinema: {
    prompt: 'cinematic still of {prompt}, shallow depth of field, film grain, dramatic light',
    negative: 'cartoon, drawing, oversaturated',
  },
  watercolour: {
    prompt: 'watercolour painting of {prompt}, soft washes, paper texture',
    negative: 'photograph, 3d render',
  },
  line: {
    prompt: 'line art of {prompt}, clean ink lines, white background',
    negative: 'photograph, shading, colour',
  },
  render: {
    prompt: '3d render of {prompt}, studio light, soft shadows, octane render',
    negative: 'flat, drawing, blurry',
  },
};

export function inStyle(draft: Draft, name: string): Partial<Draft> {
  const style = STYLES[name];
  if (!style) return {};
  const negative = [draft.negative.trim(), style.negative].filter(Boolean).join(', ');
  return { prompt: style.prompt.replace('{prompt}', draft.prompt.trim()), negative };
}
