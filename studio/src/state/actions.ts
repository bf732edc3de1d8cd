// What a person can do with a content, from whichever view.

import { signal } from '@preact/signals';
import { api, asProblem } from '../server/api';
import { asBody, change, deletedLoras, draft, draftOf, randomSeed, SEED_MAX, type Draft } from '../drafting/draft';
import { byStyles } from '../drafting/styled';
import { rememberDraft } from './history';
import { listed, plural, t } from '../i18n';
import { follow } from '../server/live';
import { readItem } from './items';
import { contentOf, focus, forget, keep, model, prependToFeed, tell, tellProblem } from './store';
import { announce } from './tabs';
import { styles } from './words';
import type { Choice, Content, GenerateBody } from '../server/types';

function takeUp(content: Content): Content {
  prependToFeed([content.id]);
  follow(content);
  announce({ kind: 'made', ids: [content.id] });
  return content;
}

/** Have `body` drawn; null where it was refused, which is told. */
export async function draw(body: GenerateBody): Promise<Content | null> {
  try {
    return takeUp(await api.generate(body));
  } catch (error) {
    tellProblem(error);
    return null;
  }
}

/** As `draw`; a refusal is thrown, for whoever has a field to show it beside. */
export async function drawOrThrow(body: GenerateBody): Promise<Content> {
  return takeUp(await api.generate(body));
}

/** The very same request again, its seed included. */
export async function again(content: Content): Promise<Content | null> {
  try {
    return takeUp(await api.replay(content.id));
  } catch (error) {
    tellProblem(error);
    return null;
  }
}

/** Whether `content` can be made again as it was; where a LoRA of it is gone, that is told. */
function isWhole(content: Content): boolean {
  const gone = deletedLoras(content);
  if (gone.length) tell(t('told.loraGone', { names: listed(gone) }), { isError: true });
  return gone.length === 0;
}

/** The settings of a picture with some of them changed, drawn at once. */
export async function vary(content: Content, place: number, changes: Partial<Draft>): Promise<Content | null> {
  if (!isWhole(content)) return null;
  return draw(asBody({ ...draftOf(content, true, place), ...changes }));
}

/** A picture at twice its sides, by the worker's first upscaler, or without one by Lanczos. */
export const enlarge = (image_id: string): Promise<Content | null> => {
  const upscaler = model.value?.limits.upscalers[0]?.name ?? 'lanczos';
  return draw({
    prompt: '',
    loras: [],
    negative_prompt: '',
    num_images: 1,
    image: { image_id },
    upscale: { upscaler, scale: 2 },
  });
};

/** The same settings with another seed; `count` pictures of it. */
export const varySeed = (content: Content, place: number, count = 1): Promise<Content | null> =>
  vary(content, place, { seed: randomSeed(), seedIsLocked: true, count });

/** The neighbouring seed: a picture of its own, made with the same everything else. */
export const stepSeed = (content: Content, place: number, by: number): Promise<Content | null> => {
  const seed = content.images[place]?.seed ?? content.parameters.seed;
  return vary(content, place, { seed: Math.min(SEED_MAX, Math.max(0, seed + by)) });
};

/** The same picture with one LoRA a little stronger or weaker. */
export const stepScale = (content: Content, place: number, id: string, by: number): Promise<Content | null> => {
  const bounds = model.value?.lora_scale;
  const held = (scale: number) =>
    Math.min(bounds?.maximum ?? 2, Math.max(bounds?.minimum ?? -2, Number((scale + by).toFixed(3))));
  const { loras } = draftOf(content, true, place);
  const used = content.loras.find((one) => one.lora_model_id === id);
  if (!used) return Promise.resolve(null);
  const stepped = { id, scale: held(used.scale) };
  // An avatar's own LoRA is not among the draft's; named there, it takes that one's place.
  const isOwn = !loras.some((one) => one.id === id);
  return vary(content, place, {
    loras: isOwn ? [...loras, stepped] : loras.map((one) => (one.id === id ? stepped : one)),
  });
};

/** Put what made a picture into the form; it can be taken back. */
export function reuse(content: Content, place: number, part: 'all' | 'prompt' | 'seed' = 'all'): void {
  const before = draft.value;
  const taken = byStyles(content, draftOf(content, true, place), styles.value ?? []);
  const gone = part === 'all' ? deletedLoras(content) : [];
  const there = taken.loras.filter(
    ({ id }) => !content.loras.some((used) => used.lora_model_id === id && gone.includes(used.name)),
  );
  rememberDraft(before);
  if (part === 'prompt') change({ prompt: taken.prompt, negative: taken.negative, styles: taken.styles });
  else if (part === 'seed') change({ seed: taken.seed, seedIsLocked: true });
  else change({ ...taken, loras: there });
  focus.value = content.id;
  const text = gone.length
    ? t('told.reusedWithout', { names: listed(gone) })
    : t(part === 'all' ? 'told.reused' : part === 'prompt' ? 'told.reusedPrompt' : 'told.reusedSeed');
  tell(text, {
    isError: gone.length > 0,
    action: { label: t('action.undo'), run: () => change(before) },
  });
}

export async function cancel(id: string): Promise<void> {
  try {
    keep(await api.cancel(id));
  } catch (error) {
    // It came to its end meanwhile: nothing to tell.
    if (asProblem(error).details.reason !== 'ended') tellProblem(error);
    else api.content(id).then(keep, () => {});
  }
}

/** What `keys` name, as the API takes it: whole contents, and single pictures of others. */
export function choiceOf(keys: string[]): Choice {
  const choice: Choice = { content_ids: [], image_ids: [] };
  for (const key of keys) {
    const { id, place } = readItem(key);
    const image = key.includes('_') ? contentOf(id).peek()?.images[place] : undefined;
    if (image) choice.image_ids.push(image.id);
    else choice.content_ids.push(id);
  }
  return choice;
}

/** The pictures that `keys` name. */
export const imagesOf = (keys: string[]): string[] =>
  keys.flatMap((key) => {
    const { id, place } = readItem(key);
    const images = contentOf(id).peek()?.images ?? [];
    return (key.includes('_') ? images.slice(place, place + 1) : images).map((image) => image.id);
  });

const AT_ONCE = 500;

/** Put pictures into the bin; `onBack` hears where that is undone. */
export async function remove(keys: string[], onBack?: () => void): Promise<boolean> {
  const ids = [...new Set(keys.map((key) => readItem(key).id))];
  const choice = choiceOf(keys.slice(0, AT_ONCE));
  try {
    await api.bin(choice);
  } catch (error) {
    tellProblem(error);
    return false;
  }
  for (const id of choice.content_ids) forget(id);
  const parts = ids.filter((id) => !choice.content_ids.includes(id));
  for (const id of parts) {
    const left = await api.content(id).catch(() => null);
    if (left && !left.deleted_at) keep(left);
    else forget(id);
  }
  announce({ kind: 'changed', ids });
  tell(plural('told.removed', keys.length), {
    action: { label: t('action.undo'), run: () => void restore(choice, onBack) },
  });
  return true;
}

/** Take out of the bin again. */
export async function restore(choice: Choice, onBack?: () => void): Promise<void> {
  try {
    const found = await api.restore(choice);
    for (const content of found.items) keep(content);
    const ids = found.items.map((content) => content.id);
    restored.value = [...restored.value, ...ids];
    announce({ kind: 'changed', ids });
    onBack?.();
  } catch (error) {
    tellProblem(error);
  }
}

/** What came out of the bin, for lists that had it. */
export const restored = signal<string[]>([]);

/** Mark or unmark a picture with a star. */
export async function star(content: Content, place: number): Promise<void> {
  const picture = content.images[place];
  if (!picture) return;
  const starred = !picture.starred;
  const images = content.images.map((one, n) => (n === place ? { ...one, starred } : one));
  keep({ ...content, images });
  try {
    await api.star([picture.id], starred);
    announce({ kind: 'changed', ids: [content.id] });
  } catch (error) {
    keep(content);
    tellProblem(error);
  }
}

export async function copy(text: string, told: string): Promise<void> {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without a secure context there is no clipboard API.
    const area = document.createElement('textarea');
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
  tell(told);
}

export const linkTo = (key: string): string => `${location.origin}/#/content/${key}`;

/** A call of the API that makes the same picture, for a terminal. */
export function asCurl(content: Content, place: number): string {
  const body = asBody(draftOf(content, true, place));
  const text = JSON.stringify(body, null, 2).replaceAll("'", String.raw`'\''`);
  return [
    `curl -X POST '${location.origin}/api/v1/content/generate' \\`,
    `  -H 'Authorization: Bearer YOUR_API_KEY' -H 'Content-Type: application/json' \\`,
    `  -d '${text}'`,
  ].join('\n');
}
