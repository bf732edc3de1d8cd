// Pictures that a drawing is held to (control networks) or whose look it takes up (references).

import type { Content, GenerateBody, Model } from '../server/types';
import type { PictureRef } from './source';

export type GuideKind = 'control' | 'reference';

export interface Guide {
  kind: GuideKind;
  /** Of the network, as the model lists it. */
  name: string;
  /** Of a network that knows several; null: it knows one. */
  type: string | null;
  image: PictureRef;
  scale: number;
  /** Shares of the steps, from 0 to 1. */
  start: number;
  end: number;
  /** The picture's edges are found first: it is no ready map. */
  findsEdges: boolean;
}

export interface Network {
  kind: GuideKind;
  name: string;
  types: string[];
}

/** As many of each kind as a request takes. */
export const GUIDES_MAX = 4;
const LIST = { control: 'controls', reference: 'references' } as const;

/** Every network that the worker offers. */
export const networksOf = ({ limits }: Model): Network[] => [
  ...limits.controls.map(({ name, types }) => ({ kind: 'control' as const, name, types: types ?? [] })),
  ...limits.adapters.map(({ name }) => ({ kind: 'reference' as const, name, types: [] })),
];

export const guideFrom = (image: PictureRef, by: Network): Guide => ({
  kind: by.kind,
  name: by.name,
  type: by.types[0] ?? null,
  image,
  scale: by.kind === 'control' ? 1 : 0.6,
  start: 0,
  end: 1,
  findsEdges: false,
});

/** What the API calls the guide at `place` of the form: `controls[0]`. */
export function fieldOf(guides: Guide[], place: number): string {
  const kind = guides[place]?.kind ?? 'control';
  const before = guides.slice(0, place).filter((one) => one.kind === kind).length;
  return `${LIST[kind]}[${before}]`;
}

/** `guides` as the API takes them; what was left as it is stays out. */
export function guidesBody(guides: Guide[]): Pick<GenerateBody, 'controls' | 'references'> {
  const common = ({ image, scale, start, end }: Guide) => ({
    image: { image_id: image.id },
    ...(scale === 1 ? {} : { scale }),
    ...(start === 0 ? {} : { start }),
    ...(end === 1 ? {} : { end }),
  });
  const controls = guides
    .filter(({ kind }) => kind === 'control')
    .map((one) => ({
      model: one.name,
      ...(one.type ? { type: one.type } : {}),
      ...(one.findsEdges ? { canny: {} } : {}),
      ...common(one),
    }));
  const references = guides
    .filter(({ kind }) => kind === 'reference')
    .map((one) => ({ adapter: one.name, ...common(one) }));
  return {
    ...(controls.length ? { controls } : {}),
    ...(references.length ? { references } : {}),
  };
}

interface Kept {
  model?: string;
  adapter?: string;
  type?: string | null;
  image: { image_id: string };
  scale?: number;
  start?: number;
  end?: number;
  canny?: object | null;
}

/** The guides of `content`; their pictures' sides are known once they were looked up. */
export function guidesOf({ parameters }: Content): Guide[] {
  const of = (kind: GuideKind) =>
    ((parameters[LIST[kind]] ?? []) as Kept[]).map((kept) => ({
      kind,
      name: kept.model ?? kept.adapter ?? '',
      type: kept.type ?? null,
      image: { id: kept.image.image_id, width: 0, height: 0 },
      scale: kept.scale ?? 1,
      start: kept.start ?? 0,
      end: kept.end ?? 1,
      findsEdges: Boolean(kept.canny),
    }));
  return [...of('control'), ...of('reference')];
}
