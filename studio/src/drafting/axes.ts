// The axes of a grid: what may differ, how its values are written, read, checked and shown.

import { SEED_MAX, sideProblem, type Whole } from './draft';
import { listed, number, plain, readNumber, splitNumbers, t } from '../i18n';
import { shapesOf } from '../parts/composer/shapes';
import { loras as library } from '../state/store';
import type { Content, GridAxis, Lora, LoraUse, Model } from '../server/types';

const PLAIN = ['prompt', 'words', 'seed', 'steps', 'cfg', 'scheduler', 'size', 'which_lora', 'lora'] as const;
/** `lora:<id>` is that LoRA's scale; `lora` the scale of the one that the other axis chooses. */
export type Parameter = (typeof PLAIN)[number] | `lora:${string}`;
/** Texts: a prompt, words, a sampler, a size as WIDTHxHEIGHT. Of `which_lora`, null is none. */
export type Value = GridAxis['values'][number];
/** How its values are given. */
export type Kind = 'numbers' | 'words' | 'prompts' | 'choice';

export interface Axis {
  parameter: Parameter;
  values: Value[];
  /** Names of LoRAs by their ids, as the pictures' own record has them: they may be deleted. */
  names?: Record<string, string>;
}

/** An axis as it stands in the form. */
export interface Written {
  parameter: Parameter;
  text: string;
  chosen: Value[];
  /** Nothing is found fault with before somebody wrote. */
  touched: boolean;
}

export type Axes = { x: Written; y: Written };
export type Name = keyof Axes;

const scaled = (parameter: Parameter): string | null =>
  parameter.startsWith('lora:') ? parameter.slice('lora:'.length) : null;

export function kindOf(parameter: Parameter): Kind {
  if (parameter === 'prompt') return 'prompts';
  if (parameter === 'words') return 'words';
  return parameter === 'scheduler' || parameter === 'size' || parameter === 'which_lora'
    ? 'choice'
    : 'numbers';
}

export function axisFrom(axis: GridAxis, contents: Content[] = []): Axis {
  const used = contents.flatMap((one) => one.loras);
  return {
    parameter:
      axis.parameter === 'lora' && axis.lora_model_id ? `lora:${axis.lora_model_id}` : axis.parameter,
    values: axis.values,
    names: Object.fromEntries(used.map((one) => [one.lora_model_id, one.name])),
  };
}

export function asAxis({ parameter, values }: Axis): GridAxis {
  const id = scaled(parameter);
  if (id) return { parameter: 'lora', lora_model_id: id, values };
  return { parameter: parameter as GridAxis['parameter'], values };
}

const nameOf = (id: string, names?: Record<string, string>): string =>
  library.value?.find((one) => one.id === id)?.name ?? names?.[id] ?? t('lora.deleted');

/** An axis's name in the reader's language. */
export function labelOf({ parameter, names }: Pick<Axis, 'parameter' | 'names'>): string {
  const id = scaled(parameter);
  if (id) return `${nameOf(id, names)} · ${t('form.scale')}`;
  switch (parameter) {
    case 'words':
      return t('grid.words');
    case 'scheduler':
      return t('field.scheduler');
    case 'which_lora':
      return t('gallery.lora');
    case 'lora':
      return t('grid.itsScale');
    default:
      return t(`form.${parameter as 'prompt' | 'seed' | 'steps' | 'cfg' | 'size'}`);
  }
}

/** What may stand on the axis `name`, beside what the other one has. */
export function offeredOn(name: Name, axes: Axes, used: Lora[], by: Model): Parameter[] {
  const other = axes[name === 'x' ? 'y' : 'x'].parameter;
  const plain: Parameter[] = PLAIN.filter(
    (one) =>
      (one !== 'lora' || other === 'which_lora') &&
      (one !== 'which_lora' || !!library.value?.length) &&
      (one !== 'scheduler' || by.schedulers.length > 1),
  );
  return [...plain, ...used.map((lora) => `lora:${lora.id}` as const)];
}

export const samplersOf = (by: Model): string[] => by.schedulers.filter((one) => one !== 'default');

/** Sizes to choose among: the shapes, and the form's own where it is none of them. */
export function sizesOf(of: Whole, by: Model): { name: string; width: number; height: number }[] {
  const shapes = shapesOf(by);
  const isShape = shapes.some((one) => one.width === of.width && one.height === of.height);
  return isShape ? shapes : [{ name: t('grid.formSize'), width: of.width, height: of.height }, ...shapes];
}

/** A LoRA as a value: at the form's scale where it is chosen there, else at its own. */
export function useOf(lora: Lora, of: Whole): LoraUse {
  const scale = of.loras.find((one) => one.id === lora.id)?.scale ?? lora.default_scale;
  return { lora_model_id: lora.id, scale };
}

export const isSame = (one: Value, other: Value): boolean => JSON.stringify(one) === JSON.stringify(other);

/** What an axis begins with. */
export function begun(parameter: Parameter, of: Whole, by: Model, used: Lora[]): Written {
  const written: Written = { parameter, text: '', chosen: [], touched: false };
  const numbers = (...all: number[]) => ({ ...written, text: all.map(plain).join('; ') });
  switch (parameter) {
    case 'prompt':
      return { ...written, text: of.prompt && `${of.prompt.replace(/\s*\n\s*/g, ' ').trim()}\n` };
    case 'words':
      return written;
    case 'seed':
      return numbers(1, 2, 3);
    case 'steps':
      return numbers(10, 20, 30);
    case 'cfg':
      return numbers(3, 5.5, 8);
    case 'scheduler':
      return { ...written, chosen: samplersOf(by).slice(0, 3) };
    case 'size': {
      const wanted = ['1:1', '2:3', '3:2'];
      const shapes = shapesOf(by).filter((one) => wanted.includes(one.name));
      return { ...written, chosen: shapes.map(({ width, height }) => `${width}x${height}`) };
    }
    case 'which_lora': {
      const first = used.length ? used : (library.value ?? []).slice(0, 2);
      return { ...written, chosen: [null, ...first.map((lora) => useOf(lora, of))] };
    }
    default:
      return numbers(0, 0.5, 1);
  }
}

/** Another parameter on a written axis: numbers stay, they may mean something there too. */
export function turned(old: Written, parameter: Parameter, of: Whole, by: Model, used: Lora[]): Written {
  if (kindOf(old.parameter) === 'numbers' && kindOf(parameter) === 'numbers')
    return { ...old, parameter };
  return begun(parameter, of, by, used);
}

/** The values of a written axis; what is no number stays, as NaN, for `valuesProblem`. */
export function valuesOf({ parameter, text, chosen }: Written): Value[] {
  const parts = (separator: RegExp) => text.split(separator).map((one) => one.trim()).filter(Boolean);
  switch (kindOf(parameter)) {
    case 'prompts':
      return parts(/\n/);
    case 'words':
      return parts(/[;\n]/);
    case 'choice':
      return chosen;
    default:
      return readNumbers(text);
  }
}

/** Numbers between commas, or `0..1 x5` for five evenly from 0 to 1. */
export function readNumbers(text: string): number[] {
  return splitNumbers(text).flatMap((part) => {
    const range = /^(-?[\d.,]*\d)\s*\.\.\s*(-?[\d.,]+)\s*[x×]\s*(\d{1,3})$/.exec(part);
    if (!range) return [readNumber(part)];
    const [from, to] = [readNumber(range[1] ?? ''), readNumber(range[2] ?? '')];
    const count = Number(range[3]);
    if (count < 2) return [from];
    return Array.from({ length: count }, (_, n) =>
      Number((from + ((to - from) * n) / (count - 1)).toFixed(4)),
    );
  });
}

const LETTER = '[\\p{L}\\p{M}\\p{N}_]';

/** Whether `words` are in `prompt`, as whole words: "red" is none of "hundred". */
export function hasWords(prompt: string, words: string): boolean {
  const bare = words.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
  return new RegExp(`(?<!${LETTER})${bare}(?!${LETTER})`, 'u').test(prompt);
}

/** Why `values` cannot stand on the axis of `parameter`; null where they can. */
export function valuesProblem(parameter: Parameter, values: Value[], by: Model): string | null {
  if (!values.length) return t('grid.noValues');
  if (new Set(values.map((one) => JSON.stringify(one))).size < values.length) return t('grid.twice');
  const { limits, lora_scale } = by;
  const numbers = (min: number, max: number, whole: boolean) => {
    const fits = (value: Value) =>
      typeof value === 'number' && value >= min && value <= max && (!whole || Number.isInteger(value));
    if (values.every(fits)) return null;
    return t(whole ? 'check.whole' : 'check.range', { min: number(min, 1), max: number(max, 1) });
  };
  switch (parameter) {
    case 'prompt':
    case 'words': {
      const max = limits.prompt_max_chars;
      return values.some((one) => String(one).length > max) ? t('check.long', { max: number(max) }) : null;
    }
    case 'size': {
      const sides = values.flatMap((one) => String(one).split('x').map(Number));
      return sides.map((side) => sideProblem(side, by)).find((one) => one !== null) ?? null;
    }
    case 'which_lora': {
      const isThere = (id?: string | null) => library.value?.some((lora) => lora.id === id);
      const gone = values.some((one) => one !== null && !isThere((one as LoraUse).lora_model_id));
      return gone ? t('grid.loraGone') : null;
    }
    case 'scheduler':
      return null;
    case 'seed':
      return numbers(0, SEED_MAX, true);
    case 'steps':
      return numbers(by.steps.minimum, by.steps.maximum, true);
    case 'cfg':
      return numbers(by.cfg.minimum, by.cfg.maximum, false);
    default:
      return numbers(lora_scale.minimum, lora_scale.maximum, false);
  }
}

/** Why an axis does not go with the other one, or with the form's prompt; of a like pair, y's. */
export function pairProblem(name: Name, axes: Record<Name, Axis>, prompt: string): string | null {
  const [of, other] = name === 'x' ? [axes.x, axes.y] : [axes.y, axes.x];
  const { parameter, values } = of;
  const isWords = parameter === 'words';
  if (name === 'y' && parameter === other.parameter)
    if (!isWords || values[0] === other.values[0]) return t('grid.same');
  const id = scaled(parameter);
  if (id && other.parameter === 'which_lora')
    if (other.values.some((one) => (one as LoraUse | null)?.lora_model_id === id)) return t('grid.sameLora');
  if (!isWords || !values.length) return null;
  const words = String(values[0]);
  const prompts = other.parameter === 'prompt' ? other.values.map(String) : [prompt];
  return prompts.every((one) => hasWords(one, words)) ? null : t('grid.noWords', { words });
}

const LONG = 40;

/**
 * Texts shortened to where they differ, word by word: of long prompts that are the same but for a
 * word, this word is what the reader wants to see.
 */
export function differing(texts: string[]): string[] {
  if (texts.length < 2 || texts.every((text) => text.length <= LONG)) return texts;
  const split = texts.map((text) => text.trim().split(/\s+/));
  const shortest = Math.min(...split.map((words) => words.length));
  const shared = (at: (words: string[], n: number) => string | undefined, most: number) => {
    let n = 0;
    while (n < most && split.every((words) => at(words, n) === at(split[0] ?? [], n))) n++;
    return n;
  };
  // Something is left of each.
  const first = shared((words, n) => words[n], shortest - 1);
  const last = shared((words, n) => words[words.length - 1 - n], shortest - 1 - first);
  return split.map((words) => {
    const left = words.slice(first, words.length - last).join(' ');
    return `${first ? '… ' : ''}${left}${last ? ' …' : ''}`;
  });
}

/** Each value as the reader sees it, short; `isScaled`: the other axis has the LoRAs' scale. */
export function valueLabels({ parameter, values, names }: Axis, isScaled = false): string[] {
  if (parameter === 'prompt') return differing(values.map(String));
  return values.map((value) => {
    if (typeof value === 'number') return number(value, 4);
    if (typeof value === 'string') return parameter === 'size' ? value.replace('x', '\u00a0×\u00a0') : value || '–';
    if (value === null) return t('grid.none');
    const name = value.name ?? nameOf(value.lora_model_id ?? '', names);
    const scale = value.scale ?? 1;
    return isScaled || scale === 1 ? name : `${name} · ${number(scale, 2)}`;
  });
}

/** The values in a row, for a hint. */
export const readBack = (axis: Axis): string => listed(valueLabels(axis));
