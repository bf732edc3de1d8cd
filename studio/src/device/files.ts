// Pictures as files: their names, saving one.

import { api, pictureUrl } from '../server/api';
import { keep, tellProblem } from '../state/store';
import type { Content } from '../server/types';

/** A name that says what is in it: the prompt's first words, the content, the seed. */
export function fileName(content: Content, place: number): string {
  const seed = content.images[place]?.seed ?? content.parameters.seed;
  const words = content.prompt
    .normalize('NFKD')
    .replace(/[^\w\s-]/g, '')
    .trim()
    .split(/\s+/)
    .slice(0, 6)
    .join('-')
    .toLowerCase()
    .slice(0, 48);
  return [words, content.id.slice(0, 8), seed].filter(Boolean).join('-') + '.png';
}

export function save(blob: Blob, name: string): void {
  const anchor = document.createElement('a');
  anchor.href = URL.createObjectURL(blob);
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 10_000);
}

/** Save a picture; its URL is asked for anew, as the shown one may have expired. */
export async function download(content: Content, place: number): Promise<void> {
  try {
    const fresh = await api.content(content.id);
    keep(fresh);
    const picture = fresh.images[place];
    if (!picture) return;
    const answer = await fetch(pictureUrl(picture.url));
    if (!answer.ok) throw new Error(String(answer.status));
    save(await answer.blob(), fileName(fresh, place));
  } catch (error) {
    tellProblem(error);
  }
}
