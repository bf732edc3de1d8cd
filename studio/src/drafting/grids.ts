// X/Y grids: one picture for every pair of values of two parameters. Kept on this device.

import { signal } from '@preact/signals';
import { drawOrThrow } from '../state/actions';
import { asBody, randomSeed, SEED_MAX, type Draft, type Whole } from './draft';
import { estimate, type Estimate } from './estimate';
import { number, readNumber, splitNumbers, t } from '../i18n';
import { recall, remember } from '../state/memory';
import { loras as library } from '../state/store';
import type { GenerateBody, Lora, Model } from '../server/types';

/** `lora:<id>` is that LoRA's scale. */
export type Parameter = 'seed' | 'steps' | 'cfg' | `lora:${string}`;

export interface Axis {
  parameter: Parameter;
  /** Of a LoRA: its name when the grid was made. */
  name?: string;
  values: number[];
}

export interface Grid {
  id: string;
  prompt: string;
  made: string;
  x: Axis;
  y: Axis;
  /** Row by row; null: not asked for (yet). */
  cells: (string | null)[][];
}

export const MAX_CELLS = 100;
const KEPT = 12;
export const grids = signal<Grid[]>(recall<Grid[]>('grids', []));

export function putGrid(grid: Grid): void {
  grids.value = [grid, ...grids.value.filter((one) => one.id !== grid.id)].slice(0, KEPT);
  remember('grids', grids.value);
}

export function clearGrids(): void {
  grids.value = [];
  remember('grids', []);
}

export function dropGrid(id: string): void {
  grids.value = grids.value.filter((one) => one.id !== id);
  remember('grids', grids.value);
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

function withValue(body: GenerateBody, parameter: Parameter, value: number): GenerateBody {
  if (parameter === 'seed' || parameter === 'steps' || parameter === 'cfg')
    return { ...body, [parameter]: value };
  const id = parameter.slice('lora:'.length);
  const others = body.loras.filter((one) => one.lora_model_id !== id);
  return { ...body, loras: [...others, { lora_model_id: id, scale: value }] };
}

/** Grids whose cells are still being asked for; one taken out is asked for no further. */
const asking = new Set<string>();

export const stopAsking = (id: string): void => void asking.delete(id);

/** Ask for every cell, row by row. Stops at the first refusal, which is thrown. */
export async function startGrid(
  of: Draft,
  x: Axis,
  y: Axis,
  onStarted: (grid: Grid) => void,
): Promise<Grid> {
  const body: GenerateBody = { ...asBody(of), num_images: 1 };
  // What is not on an axis is the same in every cell.
  body.seed ??= randomSeed();
  const grid: Grid = {
    id: Date.now().toString(36),
    prompt: of.prompt,
    made: new Date().toISOString(),
    x,
    y,
    cells: y.values.map(() => x.values.map(() => null)),
  };
  asking.add(grid.id);
  putGrid(grid);
  onStarted(grid);
  for (const [row, yValue] of y.values.entries()) {
    for (const [column, xValue] of x.values.entries()) {
      const cell = withValue(withValue(body, x.parameter, xValue), y.parameter, yValue);
      if (!asking.has(grid.id)) return grid;
      const content = await drawOrThrow(cell);
      const cells = grid.cells[row];
      if (cells) cells[column] = content.id;
      putGrid({ ...grid, cells: grid.cells.map((one) => [...one]) });
    }
  }
  asking.delete(grid.id);
  return grid;
}
