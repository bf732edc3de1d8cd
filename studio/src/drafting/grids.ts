// X/Y grids: one picture for every pair of values of two parameters. The backend keeps them, as
// batches; the cell of a picture is known by its own parameters.

import { signal } from '@preact/signals';
import { asBody, SEED_MAX, type Draft, type Whole } from './draft';
import { estimate, type Estimate } from './estimate';
import { number, readNumber, splitNumbers, t } from '../i18n';
import { api } from '../server/api';
import { contentsOf } from '../state/batchList';
import { loras as library, prependToFeed, tellProblem } from '../state/store';
import { announce } from '../state/tabs';
import { follow } from '../server/live';
import type { Batch, BatchBody, Content, GridAxis, Lora, Model } from '../server/types';

/** `lora:<id>` is that LoRA's scale. */
export type Parameter = 'seed' | 'steps' | 'cfg' | `lora:${string}`;

export interface Axis {
  parameter: Parameter;
  /** Of a LoRA: its name in the pictures' own record, should it be deleted. */
  name?: string | undefined;
  values: number[];
}

export interface Grid {
  id: string;
  prompt: string;
  made: string;
  x: Axis;
  y: Axis;
  /** Row by row; null: not known yet, or deleted. */
  cells: (string | null)[][];
}

export const MAX_CELLS = 100;
const LISTED = 12;
/** The newest ones, as the backend lists them; null until it has. */
export const grids = signal<Batch[] | null>(null);

export async function listGrids(): Promise<void> {
  try {
    grids.value = (await api.batches(LISTED, null, true)).items;
  } catch (error) {
    tellProblem(error);
  }
}

export function clearGrids(): void {
  grids.value = null;
}

function axisFrom(axis: GridAxis, contents: Content[]): Axis {
  if (axis.parameter !== 'lora') return { parameter: axis.parameter, values: axis.values };
  const id = axis.lora_model_id ?? '';
  const used = contents.flatMap((one) => one.loras).find((one) => one.lora_model_id === id);
  return { parameter: `lora:${id}`, name: used?.name, values: axis.values };
}

export const axesOf = ({ grid }: Batch): [Axis, Axis] | null =>
  grid && [axisFrom(grid.x, []), axisFrom(grid.y, [])];

function valueOf(content: Content, parameter: Parameter): number | null {
  if (parameter === 'seed' || parameter === 'steps' || parameter === 'cfg')
    return content.parameters[parameter];
  const id = parameter.slice('lora:'.length);
  return content.loras.find((used) => used.lora_model_id === id)?.scale ?? null;
}

/** A batch with its contents as a grid; null where it is none. */
export function gridOf(batch: Batch, contents: Content[]): Grid | null {
  if (!batch.grid) return null;
  const [x, y] = [axisFrom(batch.grid.x, contents), axisFrom(batch.grid.y, contents)];
  const at = (across: number, down: number) =>
    contents.find(
      (one) => valueOf(one, x.parameter) === across && valueOf(one, y.parameter) === down,
    )?.id ?? null;
  return {
    id: batch.batch_id,
    prompt: contents[0]?.prompt ?? batch.prompts[0] ?? '',
    made: batch.created_at,
    x,
    y,
    cells: y.values.map((down) => x.values.map((across) => at(across, down))),
  };
}

export function parametersOf(loras: Lora[]): { parameter: Parameter; label: string }[] {
  const parameters: Parameter[] = ['seed', 'steps', 'cfg'];
  parameters.push(...loras.map((lora) => `lora:${lora.id}` as const));
  return parameters.map((parameter) => ({ parameter, label: labelOf({ parameter }) }));
}

const loraOf = (parameter: Parameter): Lora | undefined =>
  library.value?.find((one) => `lora:${one.id}` === parameter);

/** An axis's name in the reader's language. */
export function labelOf({ parameter, name }: Pick<Axis, 'parameter' | 'name'>): string {
  if (parameter === 'seed' || parameter === 'steps' || parameter === 'cfg')
    return t(`form.${parameter}`);
  return `${loraOf(parameter)?.name ?? name ?? t('lora.deleted')} · ${t('form.scale')}`;
}

export const axisOf = (parameter: Parameter, values: number[]): Axis => ({
  parameter,
  name: loraOf(parameter)?.name,
  values,
});

/** What all cells take together: a value on an axis may make a cell slower. */
export function estimateGrid(of: Whole, x: Axis, y: Axis): Estimate | null {
  const sum: Estimate = { seconds: 0, usd: 0 };
  for (const yValue of y.values) {
    for (const xValue of x.values) {
      const steps =
        x.parameter === 'steps' ? xValue : y.parameter === 'steps' ? yValue : of.steps;
      const one = estimate({ ...of, steps, num_images: 1 });
      if (!one) return null;
      sum.seconds += one.seconds;
      sum.usd = one.usd === null || sum.usd === null ? null : sum.usd + one.usd;
    }
  }
  return sum;
}

/** The values in `text`: numbers between commas, or `0..1 x5` for five evenly from 0 to 1. */
export function readValues(text: string): number[] {
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

/** Why `values` cannot stand on the axis of `parameter`; null where they can. */
export function valuesProblem(parameter: Parameter, values: number[], by: Model): string | null {
  const [min, max, whole] =
    parameter === 'seed'
      ? [0, SEED_MAX, true]
      : parameter === 'steps'
        ? [by.steps.minimum, by.steps.maximum, true]
        : parameter === 'cfg'
          ? [by.cfg.minimum, by.cfg.maximum, false]
          : [by.lora_scale.minimum, by.lora_scale.maximum, false];
  if (!values.length) return t('grid.noValues');
  if (new Set(values).size < values.length) return t('grid.twice');
  const fits = (value: number) =>
    Number.isFinite(value) && value >= min && value <= max && (!whole || Number.isInteger(value));
  if (values.every(fits)) return null;
  return t(whole ? 'check.whole' : 'check.range', { min: number(min, 1), max: number(max, 1) });
}

function asAxis({ parameter, values }: Axis): GridAxis {
  if (parameter === 'seed' || parameter === 'steps' || parameter === 'cfg')
    return { parameter, values };
  return { parameter: 'lora', lora_model_id: parameter.slice('lora:'.length), values };
}

/** Ask for all cells at once; returns the batch's id. */
export async function startGrid(of: Draft, x: Axis, y: Axis): Promise<string> {
  const { prompt, ...settings } = asBody(of);
  const body: BatchBody = {
    ...settings,
    num_images: 1,
    prompts: [prompt ?? ''],
    grid: { x: asAxis(x), y: asAxis(y) },
  };
  return (await api.batch(body)).batch_id;
}

/** A grid with its contents, which are followed from here on. */
export async function loadGrid(id: string): Promise<Grid | null> {
  const batch = await api.readBatch(id);
  const contents = await contentsOf(id);
  follow(...[...contents].reverse());
  return gridOf(batch, contents);
}

/** Show what was accepted just now among the newest pictures, in all tabs. */
export function noteNew(grid: Grid): void {
  const ids = grid.cells.flat().filter((one) => one !== null);
  prependToFeed(ids);
  announce({ kind: 'made', ids });
}
