// The picture that a request starts from: what the form holds of it, and how the API takes it.

import { signal } from '@preact/signals';
import { api, asProblem, pictureUrl, uploadImage } from '../server/api';
import type { Content, Fill, GenerateBody, Model } from '../server/types';

/** A picture of the owner's by its id; sides in px. */
export interface PictureRef {
  id: string;
  width: number;
  height: number;
}

export type SourceMode = 'whole' | 'mask' | 'frame';
export const SIDES = ['left', 'right', 'top', 'bottom'] as const;
export type Side = (typeof SIDES)[number];

export interface Source {
  image: PictureRef;
  mode: SourceMode;
  /** White is drawn anew; null as long as nothing was painted. */
  mask: PictureRef | null;
  maskIsInverted: boolean;
  /** Null: as the API has it for the mode. */
  strength: number | null;
  fit: 'crop' | 'stretch';
  area: 'whole' | 'masked';
  padding: number;
  blur: number;
  fill: Fill | null;
  soft: boolean;
  frame: Record<Side, number>;
}

export const PADDING = 32;
export const BLUR = 4;
export const FILLS: Fill[] = ['original', 'surroundings', 'noise', 'nothing'];

export const sourceFrom = (image: PictureRef): Source => ({
  image,
  mode: 'whole',
  mask: null,
  maskIsInverted: false,
  strength: null,
  fit: 'crop',
  area: 'whole',
  padding: PADDING,
  blur: BLUR,
  fill: null,
  soft: false,
  frame: { left: 0, right: 0, top: 0, bottom: 0 },
});

export const strengthOf = (of: Source): number => of.strength ?? (of.mode === 'frame' ? 0.9 : 0.75);

/** The px of what is drawn for `of` where no size was chosen; the worker decides it by the same rule. */
export function sourceSize(of: Source, { limits }: Model): { width: number; height: number } {
  const { frame, image } = of;
  const isFramed = of.mode === 'frame';
  const width = image.width + (isFramed ? frame.left + frame.right : 0);
  const height = image.height + (isFramed ? frame.top + frame.bottom : 0);
  if (of.mode === 'mask' && of.area === 'masked')
    return { width: limits.native_size, height: limits.native_size };
  const isOutside = Math.min(width, height) < limits.min_side || Math.max(width, height) > limits.max_side;
  const scale = isOutside ? limits.native_size / Math.sqrt(width * height) : 1;
  const side = (px: number) => {
    const rounded = Math.round((px * scale) / limits.multiple_of) * limits.multiple_of;
    return Math.min(limits.max_side, Math.max(limits.min_side, rounded));
  };
  return { width: side(width), height: side(height) };
}

type FromPicture = Pick<GenerateBody, 'image' | 'mask' | 'strength' | 'fit' | 'inpaint' | 'outpaint'>;

/** `of` as the API takes it; what was left as it is stays out. */
export function sourceBody(of: Source | null): FromPicture {
  if (!of) return {};
  const hasMask = of.mode === 'mask' && of.mask !== null;
  const inpaint = {
    ...(hasMask && of.area === 'masked' ? { area: of.area, padding: of.padding } : {}),
    ...(of.blur !== BLUR ? { blur: of.blur } : {}),
    ...(of.fill ? { fill: of.fill } : {}),
    ...(hasMask && of.soft ? { soft: true } : {}),
  };
  return {
    image: { image_id: of.image.id },
    ...(hasMask && of.mask
      ? { mask: { image_id: of.mask.id, ...(of.maskIsInverted ? { invert: true } : {}) } }
      : {}),
    ...(of.strength === null ? {} : { strength: of.strength }),
    ...(of.fit === 'crop' ? {} : { fit: of.fit }),
    ...(of.mode !== 'whole' && Object.keys(inpaint).length ? { inpaint } : {}),
    ...(of.mode === 'frame' ? { outpaint: { ...of.frame } } : {}),
  };
}

type Kept = { image_id: string; invert?: boolean };

/** What `content` was drawn from; its pictures' sides are known once they were looked up. */
export function sourceOf({ parameters }: Content): Source | null {
  const image = parameters.image as Kept | null | undefined;
  if (!image) return null;
  const unknown = { width: 0, height: 0 };
  const mask = parameters.mask as Kept | null | undefined;
  const outpaint = parameters.outpaint as Partial<Record<Side, number>> | null | undefined;
  const inpaint = (parameters.inpaint ?? {}) as Partial<Source>;
  const plain = sourceFrom({ id: image.image_id, ...unknown });
  return {
    ...plain,
    mode: outpaint ? 'frame' : mask ? 'mask' : 'whole',
    mask: mask ? { id: mask.image_id, ...unknown } : null,
    maskIsInverted: mask?.invert ?? false,
    strength: (parameters.strength as number | null | undefined) ?? null,
    fit: (parameters.fit as Source['fit'] | null | undefined) ?? 'crop',
    area: inpaint.area ?? plain.area,
    padding: inpaint.padding ?? plain.padding,
    blur: inpaint.blur ?? plain.blur,
    fill: inpaint.fill ?? null,
    soft: inpaint.soft ?? false,
    frame: { ...plain.frame, ...pick(outpaint) },
  };
}

const pick = (frame: Partial<Record<Side, number>> | null | undefined): Partial<Record<Side, number>> =>
  Object.fromEntries(SIDES.map((side) => [side, frame?.[side] ?? 0]));

/** Signed URLs by picture id: they expire, so the form keeps none. */
const urls = signal<ReadonlyMap<string, string>>(new Map());
const asked = new Set<string>();

export function noteUrl(id: string, url: string): void {
  urls.value = new Map(urls.value).set(id, pictureUrl(url));
}

/** Where `id` can be seen, once that is known; `onGone` hears that it is not there any more. */
export function urlOf(id: string, onFound: (found: PictureRef) => void, onGone: () => void): string | null {
  const url = urls.value.get(id);
  if (url === undefined && !asked.has(id)) void lookUp(id, onFound, onGone);
  return url ?? null;
}

export async function lookUp(
  id: string,
  onFound: (found: PictureRef) => void,
  onGone: () => void,
): Promise<void> {
  asked.add(id);
  try {
    const { url, width, height } = await api.image(id);
    noteUrl(id, url);
    onFound({ id, width, height });
  } catch (error) {
    if (asProblem(error).status === 404) onGone();
  } finally {
    asked.delete(id);
  }
}

/** Put a picture's file there to draw from. */
export async function takePicture(file: Blob, name: string): Promise<PictureRef> {
  const { id, url, width, height } = await uploadImage(file, name);
  noteUrl(id, url);
  return { id, width, height };
}
