// Sizes offered as shapes: near the native area, on the model's grid, inside its bounds.

import type { Model } from '../../server/types';

export interface Shape {
  name: string;
  width: number;
  height: number;
}

const RATIOS: [number, number][] = [
  [1, 1],
  [4, 5],
  [2, 3],
  [9, 16],
  [5, 4],
  [3, 2],
  [16, 9],
];

export function shapesOf({ limits }: Model): Shape[] {
  const { native_size, min_side, max_side, multiple_of } = limits;
  const side = (wanted: number) =>
    Math.min(max_side, Math.max(min_side, Math.round(wanted / multiple_of) * multiple_of));
  return RATIOS.map(([w, h]) => ({
    name: `${w}:${h}`,
    width: side(native_size * Math.sqrt(w / h)),
    height: side(native_size * Math.sqrt(h / w)),
  }));
}
