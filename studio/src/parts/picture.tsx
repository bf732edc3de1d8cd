// Pictures: their URLs are signed and expire, so one that cannot be loaded is asked for once again.

import { api, pictureUrl } from '../api';
import { percent, t } from '../i18n';
import { partDone, progressOf } from '../live';
import { contentOf, keep } from '../store';
import type { Content } from '../types';

const RENEWED_MS = 20_000;
const renewedAt = new Map<string, number>();

async function renew(id: string): Promise<void> {
  if (Date.now() - (renewedAt.get(id) ?? -RENEWED_MS) < RENEWED_MS) return;
  renewedAt.set(id, Date.now());
  try {
    keep(await api.content(id));
  } catch {
    // It stays as it is: the text in its place says what it shows.
  }
}

/** A finished picture of `content`. */
export function Picture(props: { content: Content; place?: number; small?: boolean; eager?: boolean }) {
  const { content, place = 0, small, eager } = props;
  const picture = content.images[place] ?? content.images[0];
  if (!picture) return null;
  return (
    <img
      src={pictureUrl((small && picture.thumbnail_url) || picture.url)}
      alt={content.prompt || t('picture.noPrompt')}
      width={picture.width}
      height={picture.height}
      loading={eager ? 'eager' : 'lazy'}
      decoding="async"
      draggable={false}
      onError={() => void renew(content.id)}
    />
  );
}

interface ThumbProps {
  id: string;
  chosen?: boolean;
  onOpen?: (id: string) => void;
  /** Set in lists where only one thumb takes part in the tab order. */
  tabIndex?: number;
}

/** A small square that stands for a content in any state. */
export function Thumb({ id, chosen, onOpen, tabIndex }: ThumbProps) {
  const content = contentOf(id).value;
  const inside = <ThumbInside id={id} content={content} />;
  const names = `thumb ${chosen ? 'chosen' : ''} ${content?.status ?? 'unknown'}`;
  if (!onOpen) {
    return (
      <a class={names} href={`#/content/${id}`} tabIndex={tabIndex} data-id={id}>
        {inside}
      </a>
    );
  }
  return (
    <button
      type="button"
      class={names}
      aria-pressed={chosen}
      tabIndex={tabIndex}
      data-id={id}
      onClick={() => onOpen(id)}
    >
      {inside}
    </button>
  );
}

function ThumbInside({ id, content }: { id: string; content: Content | null }) {
  if (!content) return <span class="unseen">{t('state.loading')}</span>;
  if (content.images.length) {
    return (
      <>
        <Picture content={content} small />
        {content.images.length > 1 && <span class="tag">×{content.images.length}</span>}
      </>
    );
  }
  return <ThumbState id={id} content={content} />;
}

function ThumbState({ id, content }: { id: string; content: Content }) {
  const now = progressOf(id).value;
  const part = partDone(now);
  return (
    <>
      {now.preview && <img class="preview" src={now.preview} alt="" />}
      <span class="thumb-state">
        {part === null ? t(`status.${content.status}`) : percent(part)}
      </span>
      <span class="unseen">{content.prompt}</span>
      {content.status === 'running' && <i class="thumb-bar" style={{ width: `${(part ?? 0) * 100}%` }} />}
    </>
  );
}
