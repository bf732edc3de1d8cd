// A picture of a request as an item of its own: `<content>_2` is its second one. A content with
// one picture, or none, is one item: `<content>`.

import { contentOf } from './store';
import type { Content } from '../server/types';

export interface Item {
  id: string;
  place: number;
}

export const itemKey = (content: Content, place: number): string =>
  content.images.length > 1 ? `${content.id}_${place + 1}` : content.id;

export function readItem(key: string): Item {
  const [id = '', number] = key.split('_');
  return { id, place: number ? Math.max(0, Number(number) - 1) : 0 };
}

export const keysOf = (content: Content): string[] =>
  content.images.length > 1
    ? content.images.map((_, place) => itemKey(content, place))
    : [content.id];

/** Each picture of `ids` on its own, in the order in which they were drawn. */
export function expanded(ids: string[]): string[] {
  return ids.flatMap((id) => {
    const content = contentOf(id).value;
    return content ? keysOf(content) : [id];
  });
}
