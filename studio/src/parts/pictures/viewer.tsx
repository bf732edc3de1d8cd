// One content in full: its picture or its progress, what to do with it, and what is known of it.

import { useEffect, useRef, useState } from 'preact/hooks';
import { t } from '../../i18n';
import { looked } from '../../state/store';
import { isFinal, type Content } from '../../server/types';
import { Actions } from '../composer/actionBar';
import { Frame } from './frame';
import { Picture } from './picture';
import { Report } from './report';

interface Props {
  content: Content;
  /** Which of its pictures is shown first. */
  first?: number;
  /** Shows another content in this one's place. */
  onShow: (id: string) => void;
  onRemoved: () => void;
  /** To the picture before or after this content's own ones. */
  onLeave?: (by: -1 | 1) => void;
}

export function Viewer({ content, first = 0, onShow, onRemoved, onLeave }: Props) {
  const [place, setPlace] = useState(first);
  const element = useRef<HTMLElement>(null);
  const last = Math.max(0, content.images.length - 1);
  const shown = Math.min(place, last);
  const ended = isFinal(content.status);
  const before = useRef(ended);

  useEffect(() => setPlace(first), [content.id, first]);
  useEffect(() => {
    looked.value = { content, place: shown };
    return () => {
      if (looked.peek()?.content.id === content.id) looked.value = null;
    };
  }, [content, shown]);
  // The button that had the focus is gone at the end: it must not fall on another one.
  useEffect(() => {
    if (ended && !before.current && element.current?.contains(document.activeElement) === false) {
      if (document.activeElement === document.body) element.current.focus({ preventScroll: true });
    }
    before.current = ended;
  }, [ended]);

  const move = (by: -1 | 1) => {
    const to = shown + by;
    if (to >= 0 && to <= last) setPlace(to);
    else onLeave?.(by);
  };
  return (
    <article ref={element} class="viewer" aria-label={t('viewer.label')} tabIndex={-1}>
      <div class="viewer-main">
        <Frame content={content} place={shown} onMove={move} />
        {content.images.length > 1 && (
          <div class="places" role="group" aria-label={t('viewer.places')}>
            {content.images.map((picture, number) => (
              <button
                type="button"
                key={picture.sha256 + number}
                aria-pressed={number === shown}
                aria-label={t('viewer.place', { n: number + 1 })}
                onClick={() => setPlace(number)}
              >
                <Picture content={content} place={number} small />
              </button>
            ))}
          </div>
        )}
        <Actions
          key={ended ? 'ended' : 'open'}
          content={content}
          place={shown}
          onShow={onShow}
          onRemoved={onRemoved}
        />
      </div>
      <Report content={content} place={shown} />
    </article>
  );
}
