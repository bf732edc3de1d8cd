// How long the next picture takes and what it costs, judged by the last ones on the same device.

import { contentOf, feed } from '../state/store';
import { hiresOf, type Hires } from './draft';
import { sourceOf, strengthOf, type Source } from './source';
import type { Content } from '../server/types';

const LOOKED_AT = 8;

export interface Estimate {
  seconds: number;
  usd: number | null;
}

interface Work {
  width: number;
  height: number;
  steps: number;
  num_images: number;
  /** The share of the steps that is drawn, over a picture. */
  strength: number;
  hires: Hires | null;
}

// A step at s times the sides takes as long as s ^ 2.4 steps: attention grows faster than the pixels.
const GROWTH = 2.4;

const steps = ({ steps, strength, hires }: Work): number =>
  Math.floor(steps * strength) + (hires ? (hires.steps || steps) * hires.scale ** GROWTH : 0);

const amount = (work: Work): number => steps(work) * work.width * work.height * work.num_images;

function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? 0;
}

function pastOf(ids: string[]): Content[] {
  const drawn: Content[] = [];
  for (const id of ids) {
    const content = contentOf(id).value;
    // An enlargement draws no steps.
    if (content?.status !== 'succeeded' || content.parameters.upscale) continue;
    if (content.timings && content.cost) drawn.push(content);
    if (drawn.length === LOOKED_AT) break;
  }
  return drawn;
}

/** A drawn content's own work: what it had left open is written back by then. */
function workOf(content: Content): Work {
  const { parameters } = content;
  const { width, height, steps } = parameters;
  const source = sourceOf(content);
  const strength = source ? strengthOf(source) : 1;
  return { ...parameters, width: width ?? 1, height: height ?? 1, steps: steps ?? 1, strength, hires: hiresOf(parameters) };
}

/** Null where nothing was drawn yet. `usd` is null on a device without a price. */
export function estimate(asked: Omit<Work, 'strength'> & { source: Source | null }): Estimate | null {
  const work = {
    ...asked,
    strength: asked.source ? strengthOf(asked.source) : 1,
    hires: asked.source ? null : asked.hires,
  };
  const past = pastOf(feed.value ?? []);
  if (!past.length) return null;
  const perStep = median(past.map((c) => (c.timings?.denoise ?? 0) / Math.max(1, amount(workOf(c)))));
  const besides = median(
    past.map((c) => {
      const all = Object.entries(c.timings ?? {}).filter(([phase]) => phase !== 'queue');
      const seconds = all.reduce((sum, [, one]) => sum + one, 0) - (c.timings?.denoise ?? 0);
      return seconds / c.parameters.num_images;
    }),
  );
  const seconds = perStep * amount(work) + besides * work.num_images;
  const priced = past.find((c) => c.cost?.usd != null && c.cost.seconds > 0)?.cost;
  return { seconds, usd: priced?.usd != null ? (priced.usd / priced.seconds) * seconds : null };
}
