// What the form holds: kept on this device, checked against the model's limits, sent as a request.

import { computed, effect, signal } from '@preact/signals';
import { number, t } from '../i18n';
import { recall, remember, recallHere, rememberHere } from '../state/memory';
import { avatars, loras, model } from '../state/store';
import { styles } from '../state/words';
import { fieldOf, guidesBody, guidesOf, type Guide } from './guides';
import { sourceBody, sourceOf, sourceSize, strengthOf, type Source } from './source';
import type { Avatar, Content, GenerateBody, Lora, Model, PromptSyntax } from '../server/types';

export interface Hires {
  /** Times the sides. */
  scale: number;
  upscaler: string;
  strength: number;
  /** 0: as many as the first pass. */
  steps: number;
}

/** What a picture brought along and the form has no field for: shown, and sent as it is. */
export type Beyond = Partial<Pick<GenerateBody, 'clip_skip' | 'guidance_rescale' | 'embeddings'>> & {
  hires?: { prompt?: string; negative_prompt?: string; cfg?: number; scheduler?: string };
};

export interface Draft {
  prompt: string;
  negative: string;
  /** Names of the owner's styles, which the server puts around the prompts. */
  styles: string[];
  avatarId: string | null;
  loras: { id: string; scale: number }[];
  width: number | null;
  height: number | null;
  steps: number | null;
  cfg: number | null;
  scheduler: string | null;
  seed: number | null;
  seedIsLocked: boolean;
  count: number;
  /** The picture that is drawn over; null: from nothing. */
  source: Source | null;
  /** Pictures that hold the drawing, or lend it their look. */
  guides: Guide[];
  /** A second pass at a larger size. */
  hires: Hires | null;
  syntax: PromptSyntax;
  beyond: Beyond;
}

export const SEED_MAX = 2 ** 32 - 1;
/** By the API's field names; '' is the form as a whole. */
export type FieldErrors = Record<string, string>;

const EMPTY: Draft = {
  prompt: '',
  negative: '',
  styles: [],
  avatarId: null,
  loras: [],
  width: null,
  height: null,
  steps: null,
  cfg: null,
  scheduler: null,
  seed: null,
  seedIsLocked: false,
  count: 1,
  source: null,
  guides: [],
  hires: null,
  syntax: 'weights',
  beyond: {},
};

/** Of this tab; a new tab begins with what was written last. */
export const draft = signal<Draft>({
  ...EMPTY,
  ...recallHere<Partial<Draft>>('draft', recall('draft', {})),
});
/** What the server refused, until the field is changed. */
export const refused = signal<FieldErrors>({});

effect(() => {
  rememberHere('draft', draft.value);
  remember('draft', draft.value);
});

const FIELDS_OF: Partial<Record<keyof Draft, string[]>> = {
  negative: ['negative_prompt'],
  syntax: ['prompt_syntax'],
  beyond: ['clip_skip', 'guidance_rescale', 'embeddings', 'hires'],
  guides: ['controls', 'references'],
  source: ['image', 'mask', 'strength', 'fit', 'inpaint', 'outpaint'],
};

export function change(changes: Partial<Draft>): void {
  draft.value = { ...draft.value, ...changes };
  const names = Object.keys(changes).flatMap((name) => FIELDS_OF[name as keyof Draft] ?? name);
  const left = Object.entries(refused.value).filter(
    ([field]) => field !== '' && !names.some((name) => field === name || field.startsWith(name)),
  );
  refused.value = Object.fromEntries(left);
}

export const randomSeed = (): number => crypto.getRandomValues(new Uint32Array(1))[0] ?? 0;

/** The draft with the model's defaults where nothing was chosen: to be shown, never to be sent. */
export interface Whole extends Draft {
  width: number;
  height: number;
  steps: number;
  cfg: number;
}

export function completed(of: Draft, by: Model): Whole {
  const { native_size } = by.limits;
  const open = of.source ? sourceSize(of.source, by) : { width: native_size, height: native_size };
  return {
    ...of,
    width: of.width ?? open.width,
    height: of.height ?? open.height,
    steps: of.steps ?? by.steps.default,
    cfg: of.cfg ?? by.cfg.default,
  };
}

export const whole = computed(() => (model.value ? completed(draft.value, model.value) : null));

export const avatar = computed<Avatar | null>(
  () => avatars.value?.find((one) => one.id === draft.value.avatarId) ?? null,
);

/** The LoRAs that will be applied: the avatar's first, then the chosen ones that are there. */
export const usedLoras = computed<{ lora: Lora; scale: number; isAvatars: boolean }[]>(() => {
  const library = new Map((loras.value ?? []).map((lora) => [lora.id, lora]));
  const chosen = draft.value.loras.flatMap(({ id, scale }) => {
    const lora = library.get(id);
    return lora ? [{ lora, scale, isAvatars: false }] : [];
  });
  const own = avatar.value?.lora_model_id ? library.get(avatar.value.lora_model_id) : undefined;
  if (!own || chosen.some(({ lora }) => lora.id === own.id)) return chosen;
  return [{ lora: own, scale: avatar.value?.lora_scale ?? 1, isAvatars: true }, ...chosen];
});

export function sideProblem(side: number, { limits }: Model): string | null {
  const { min_side, max_side, multiple_of } = limits;
  if (Number.isInteger(side) && side >= min_side && side <= max_side && side % multiple_of === 0)
    return null;
  return t('check.side', { min: min_side, max: max_side, multiple: multiple_of });
}

function rangeProblem(value: number, min: number, max: number, whole: boolean): string | null {
  if (Number.isFinite(value) && value >= min && value <= max && (!whole || Number.isInteger(value)))
    return null;
  return t(whole ? 'check.whole' : 'check.range', { min: number(min, 1), max: number(max, 1) });
}

/** What is wrong with a request before it is sent. */
export function check(of: Whole, by: Model, promptIsNeeded = true): FieldErrors {
  const found: Record<string, string | null> = {
    prompt:
      promptIsNeeded && !of.prompt.trim() && !of.avatarId
        ? t('check.prompt')
        : of.prompt.length > by.limits.prompt_max_chars
          ? t('check.long', { max: number(by.limits.prompt_max_chars) })
          : null,
    width: sideProblem(of.width, by),
    height: sideProblem(of.height, by),
    steps: rangeProblem(of.steps, by.steps.minimum, by.steps.maximum, true),
    cfg: rangeProblem(of.cfg, by.cfg.minimum, by.cfg.maximum, false),
    seed:
      of.seedIsLocked && of.seed !== null ? rangeProblem(of.seed, 0, SEED_MAX, true) : null,
    num_images: rangeProblem(of.count, 1, by.limits.max_images, true),
    loras:
      usedLoras.value.length > by.limits.max_loras
        ? t('check.loras', { max: by.limits.max_loras })
        : null,
  };
  const gone = of.styles.find((name) => styles.value?.every((one) => one.name !== name));
  if (gone !== undefined) found.styles = t('styles.gone', { name: gone });
  if (of.source) Object.assign(found, sourceProblems(of.source, of.steps));
  const { minimum, maximum } = by.lora_scale;
  of.loras.forEach(({ scale }, place) => {
    found[`loras[${place}].scale`] = rangeProblem(scale, minimum, maximum, false);
  });
  of.guides.forEach(({ scale, start, end }, place) => {
    const field = fieldOf(of.guides, place);
    found[`${field}.scale`] = rangeProblem(scale, 0, 2, false);
    found[`${field}.end`] = start < end ? null : t('guides.order');
  });
  const wrong = Object.entries(found).filter((one): one is [string, string] => one[1] !== null);
  return Object.fromEntries(wrong);
}

/**
 * `of` as the API takes it. What was not chosen is left out: the worker that draws decides it, and may
 * be another one than the page has seen.
 */
export function asBody(of: Draft): GenerateBody {
  const { width, height, steps, cfg, scheduler } = of;
  const chosen = Object.entries({ width, height, steps, cfg, scheduler });
  const { hires: words, ...beyond } = of.beyond;
  return {
    ...(of.prompt.trim() ? { prompt: of.prompt } : {}),
    ...(of.avatarId ? { avatar_id: of.avatarId } : {}),
    loras: of.loras.map(({ id, scale }) => ({ lora_model_id: id, scale })),
    negative_prompt: of.negative,
    ...(of.styles.length ? { styles: of.styles } : {}),
    ...Object.fromEntries(chosen.filter(([, value]) => value !== null)),
    ...(of.seedIsLocked && of.seed !== null ? { seed: of.seed } : {}),
    num_images: of.count,
    ...sourceBody(of.source),
    ...guidesBody(of.guides),
    ...(of.hires && !of.source ? { hires: { ...of.hires, ...words } as GenerateBody['hires'] } : {}),
    ...beyond,
    ...(of.syntax === 'weights' ? {} : { prompt_syntax: of.syntax }),
  };
}

function sourceProblems(of: Source, steps: number): Record<string, string | null> {
  const { left, right, top, bottom } = of.frame;
  return {
    mask: of.mode === 'mask' && !of.mask ? t('source.noMask') : null,
    outpaint: of.mode === 'frame' && left + right + top + bottom === 0 ? t('source.noFrame') : null,
    strength: Math.floor(steps * strengthOf(of)) < 1 ? t('source.tooWeak') : null,
  };
}

function without(text: string, start: string): string | null {
  const [whole, first] = [text.trim(), start.trim()];
  if (!first) return whole;
  if (whole === first) return '';
  return whole.startsWith(first + ', ') ? whole.slice(first.length + 2) : null;
}

/** The names of `content`'s LoRAs that were deleted since. */
export function deletedLoras(content: Content): string[] {
  const there = new Set((loras.value ?? []).map((lora) => lora.id));
  return content.loras.filter((used) => !there.has(used.lora_model_id)).map((used) => used.name);
}

/** Take out of the form what is not in the library any more; the number of those. */
export function dropDeletedLoras(): number {
  if (loras.value === null) return 0;
  const there = new Set(loras.value.map((lora) => lora.id));
  const left = draft.value.loras.filter(({ id }) => there.has(id));
  const gone = draft.value.loras.length - left.length;
  if (gone) change({ loras: left });
  return gone;
}

/** The second pass that a content's `parameters` ask for. */
export function hiresOf({ hires }: Content['parameters']): Hires | null {
  if (!hires) return null;
  const { scale = 2, upscaler = 'latent', strength = 0.7, steps = 0 } = hires as Partial<Hires>;
  return { scale, upscaler, strength, steps };
}

const BEYOND_HIRES = ['prompt', 'negative_prompt', 'cfg', 'scheduler'] as const;

/** What a content's `parameters` say that the form has no field for. */
function beyondOf({ clip_skip, guidance_rescale, embeddings, hires }: Content['parameters']): Beyond {
  const used = (embeddings ?? []) as { embedding_id: string; token: string }[];
  const second = (hires ?? {}) as NonNullable<Beyond['hires']>;
  const own = BEYOND_HIRES.filter((name) => second[name] !== undefined && second[name] !== null);
  return {
    ...(clip_skip ? { clip_skip: clip_skip as number } : {}),
    ...(guidance_rescale ? { guidance_rescale: guidance_rescale as number } : {}),
    ...(used.length
      ? { embeddings: used.map(({ embedding_id, token }) => ({ embedding_id, word: token })) }
      : {}),
    ...(own.length ? { hires: Object.fromEntries(own.map((name) => [name, second[name]])) } : {}),
  };
}

/**
 * The settings that made the picture at `place` of `content`; null: those of the whole request.
 * The avatar's part is taken out of the prompt where it is still the same; otherwise everything is
 * written out and no avatar is chosen.
 */
export function draftOf(content: Content, keepSeed: boolean, place: number | null = null): Draft {
  const picture = place === null ? undefined : content.images[place];
  const own = avatars.value?.find((one) => one.id === content.avatar_id);
  const prompt = own ? without(content.prompt, own.base_prompt) : null;
  const negative = own ? without(content.negative_prompt, own.negative_prompt) : null;
  const fits = own !== undefined && prompt !== null && negative !== null;
  const { parameters } = content;
  return {
    prompt: fits ? prompt : content.prompt,
    negative: fits ? negative : content.negative_prompt,
    // Their words are in the prompts.
    styles: [],
    avatarId: fits ? own.id : null,
    loras: content.loras
      .filter(
        (used) =>
          !fits || used.lora_model_id !== own.lora_model_id || used.scale !== own.lora_scale,
      )
      .map((used) => ({ id: used.lora_model_id, scale: used.scale })),
    width: parameters.width,
    height: parameters.height,
    steps: parameters.steps,
    cfg: parameters.cfg,
    // The worker states the model's own by a name that cannot be asked for.
    scheduler: model.value?.schedulers.find((name) => name === parameters.scheduler) ?? null,
    seed: keepSeed ? (picture?.seed ?? parameters.seed) : null,
    seedIsLocked: keepSeed,
    count: keepSeed && picture ? 1 : parameters.num_images,
    source: sourceOf(content),
    guides: guidesOf(content),
    hires: hiresOf(parameters),
    syntax: (parameters.prompt_syntax as PromptSyntax | null | undefined) ?? 'weights',
    beyond: beyondOf(parameters),
  };
}

/** The sampler that a LoRA in use asks for, where another one is chosen. */
export const suggested = computed<{ scheduler: string; lora: Lora } | null>(() => {
  const offered = model.value?.schedulers ?? [];
  for (const { lora } of usedLoras.value) {
    const scheduler = lora.suggested_scheduler;
    if (scheduler && offered.includes(scheduler))
      return scheduler === (draft.value.scheduler ?? avatar.value?.scheduler) ? null : { scheduler, lora };
  }
  return null;
});

/** Nothing but what was asked: a first draft. */
export function clearDraft(): void {
  draft.value = { ...EMPTY };
  refused.value = {};
}
