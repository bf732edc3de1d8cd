// Pictures: their URLs are signed and expire, so one that cannot be loaded is asked for once again.

import { api, pictureUrl } from '../../server/api';
import { fileName } from '../../device/files';
import { moment, percent, t } from '../../i18n';
import { readItem } from '../../state/items';
import { partDone, progressOf } from '../../server/live';
import { contentOf, keep } from '../../state/store';
import type { Content } from '../../server/types';
import { Icon } from '../icons';

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

/** Let a picture be dragged onto the desktop as the file that it is. */
export function offerFile(e: DragEvent, content: Content, place: number): void {
  const picture = content.images[place];
  if (!picture || !e.dataTransfer) return;
  const url = new URL(pictureUrl(picture.url), location.href).href;
  e.dataTransfer.effectAllowed = 'copy';
  e.dataTransfer.setData('DownloadURL', `image/png:${fileName(content, place)}:${url}`);
  e.dataTransfer.setData('text/uri-list', url);
  const { id, width, height } = picture;
  e.dataTransfer.setData('application/x-picture', JSON.stringify({ id, width, height, url }));
}

/** A picture of this page that is dragged over it. */
export function droppedPicture(
  data: DataTransfer,
): { id: string; width: number; height: number; url: string } | null {
  const text = data.getData('application/x-picture');
  return text ? JSON.parse(text) : null;
}

interface PictureProps {
  content: Content;
  place?: number;
  small?: boolean;
  eager?: boolean;
}

/** A finished picture of `content`; it can be dragged out of the page. */
export function Picture({ content, place = 0, small, eager }: PictureProps) {
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
      draggable
      onDragStart={(e) => offerFile(e, content, place)}
      onError={() => void renew(content.id)}
    />
  );
}

interface ThumbProps {
  /** A content, or one picture of it. */
  id: string;
  chosen?: boolean;
  /** Chosen among others, rather than shown: it gets a tick. */
  ticked?: boolean;
  /** The whole request as one, with the number of its pictures. */
  whole?: boolean;
  onOpen?: (id: string, e: MouseEvent) => void;
  /** Set in lists where only one thumb takes part in the tab order. */
  tabIndex?: number;
}

/** A small square that stands for a content in any state; the picture in it is whole. */
export function Thumb({ id, chosen, ticked, whole, onOpen, tabIndex }: ThumbProps) {
  const item = readItem(id);
  const content = contentOf(item.id).value;
  const inside = (
    <>
      <ThumbInside id={item.id} place={item.place} content={content} whole={whole} />
      {ticked && (
        <span class="tick">
          <Icon name="check" size={14} />
        </span>
      )}
    </>
  );
  const names = `thumb ${chosen ? 'chosen' : ''} ${content?.status ?? 'unknown'}`;
  const title = content ? `${content.prompt.slice(0, 300)}\n${moment(content.created_at)}` : '';
  if (!onOpen) {
    return (
      <a class={names} href={`#/content/${id}`} tabIndex={tabIndex} data-id={id} title={title}>
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
      title={title}
      onClick={(e) => onOpen(id, e)}
    >
      {inside}
    </button>
  );
}

interface InsideProps {
  id: string;
  place: number;
  content: Content | null;
  whole?: boolean;
}

function ThumbInside({ id, place, content, whole }: InsideProps) {
  if (!content) return <span class="unseen">{t('state.loading')}</span>;
  if (content.images.length) {
    return (
      <>
        <Picture content={content} place={place} small />
        {whole && content.images.length > 1 && <span class="tag">×{content.images.length}</span>}
        {content.images[place]?.starred && !whole && (
          <span class="tag starred">
            <Icon name="star" size={12} />
            <span class="unseen">{t('star.is')}</span>
          </span>
        )}
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
      {content.status === 'running' && (
        <i class="thumb-bar" style={{ width: `${(part ?? 0) * 100}%` }} />
      )}
    </>
  );
}
