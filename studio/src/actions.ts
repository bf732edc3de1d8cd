// What a person can do with a content, from whichever view.

import { api, pictureUrl } from './api';
import { asBody, change, completed, draftOf, randomSeed } from './draft';
import { t } from './i18n';
import { follow } from './live';
import { forget, keep, model, prependToFeed, tell, tellProblem } from './store';
import type { Content, GenerateBody } from './types';

/** Have `body` drawn; null where it was refused, which is told. */
export async function draw(body: GenerateBody): Promise<Content | null> {
  try {
    const content = await api.generate(body);
    prependToFeed([content.id]);
    follow(content);
    return content;
  } catch (error) {
    tellProblem(error);
    return null;
  }
}

export async function again(content: Content): Promise<Content | null> {
  try {
    const repeated = await api.replay(content.id);
    prependToFeed([repeated.id]);
    follow(repeated);
    return repeated;
  } catch (error) {
    tellProblem(error);
    return null;
  }
}

/** The same settings with another seed. */
export async function varySeed(content: Content): Promise<Content | null> {
  if (!model.value) return null;
  const settings = completed(draftOf(content, false), model.value);
  return draw({ ...asBody(settings), seed: randomSeed() });
}

/** Put what made `content` into the form. */
export function reuse(content: Content): void {
  change(draftOf(content, true));
  tell(t('told.reused'));
}

export async function cancel(id: string): Promise<void> {
  try {
    keep(await api.cancel(id));
  } catch (error) {
    tellProblem(error);
  }
}

export async function remove(id: string): Promise<boolean> {
  try {
    await api.deleteContent(id);
    forget(id);
    return true;
  } catch (error) {
    tellProblem(error);
    return false;
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

export const linkTo = (id: string): string => `${location.origin}/#/content/${id}`;

/** Save a picture; its URL is asked for anew, as the shown one may have expired. */
export async function download(content: Content, place: number): Promise<void> {
  try {
    const fresh = await api.content(content.id);
    keep(fresh);
    const picture = fresh.images[place];
    if (!picture) return;
    const answer = await fetch(pictureUrl(picture.url));
    if (!answer.ok) throw new Error(String(answer.status));
    save(await answer.blob(), `${fresh.id.slice(0, 8)}-${picture.seed}.png`);
  } catch (error) {
    tellProblem(error);
  }
}

export function save(blob: Blob, name: string): void {
  const anchor = document.createElement('a');
  anchor.href = URL.createObjectURL(blob);
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 10_000);
}

