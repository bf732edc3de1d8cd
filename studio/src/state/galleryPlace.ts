// Where the gallery was left: its list, how far it was scrolled, which picture was opened.

import { contentList, type ContentList } from './contentList';
import { filterOf, wantedOf } from './galleryFilter';

export interface Place {
  query: string;
  list: ContentList;
  top: number;
  opened: string | null;
}

let kept: Place | null = null;

/** The gallery as it was left with this filter, or from its beginning. */
export function placeFor(query: string): Place {
  if (kept?.query !== query)
    kept = { query, list: contentList(wantedOf(filterOf(query))), top: 0, opened: null };
  return kept;
}

/** The list that the gallery shows, for a picture's neighbours; null before it was opened. */
export const galleryIds = (): string[] | null => kept?.list.ids.value ?? null;

/** Where the gallery was left, with its filter. */
export const galleryPath = (): string => (kept?.query ? `gallery?${kept.query}` : 'gallery');

/** The picture that was looked at: back in the gallery, it has the focus. */
export function noteOpened(item: string): void {
  if (kept) kept.opened = item;
}

export function forgetGallery(): void {
  kept = null;
}
