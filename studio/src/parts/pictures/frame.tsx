// The picture of a content, or how far it is, or why there is none.

import { useState } from 'preact/hooks';
import { explainEnd } from '../../server/explain';
import { duration, plural, t, tMaybe } from '../../i18n';
import { partDone, progressOf, reasonIn, type Progress } from '../../server/live';
import { reached } from '../../state/store';
import { isFinal, type Content } from '../../server/types';
import { Icon } from '../icons';
import { lazy } from '../../lazy';
import { Picture } from './picture';
import { Bar } from '../ui';

const Lightbox = lazy(() => import('./lightbox').then((found) => found.Lightbox));

interface Props {
  content: Content;
  place: number;
  /** To the neighbouring picture, in the lightbox too. */
  onMove: (by: -1 | 1) => void;
}

export function Frame({ content, place, onMove }: Props) {
  const [isLarge, setLarge] = useState(false);
  const shown = content.images[place] ?? content.parameters;
  // A side that was left open is known once it is drawn: square until then.
  const [width, height] = [shown.width ?? 1, shown.height ?? 1];
  // Small models' pictures are shown larger, with their pixels' edges softened by the browser.
  const box = {
    aspectRatio: `${width} / ${height}`,
    '--ratio': String(width / height),
  };
  return (
    <div class="frame-room">
      <div class="frame" style={box} data-status={content.status}>
      {content.images.length ? (
        <>
          <button type="button" class="frame-open" onClick={() => setLarge(true)}>
            <Picture content={content} place={place} eager />
            <span class="frame-hint" aria-hidden="true">
              <Icon name="expand" />
            </span>
            <span class="unseen">{t('lightbox.open')}</span>
          </button>
          {isLarge && (
            <Lightbox content={content} place={place} onMove={onMove} onClose={() => setLarge(false)} />
          )}
        </>
      ) : isFinal(content.status) ? (
        <div class="frame-text">
          <h2>{t(`status.${content.status}`)}</h2>
          {content.error && <p>{explainEnd(content.error)}</p>}
        </div>
      ) : (
        <Drawing content={content} />
      )}
      </div>
    </div>
  );
}

/** What keeps a content from going on, in the page's words. */
function waitingWords(content: Content, { position, waits }: Progress): string {
  const reason = waits ?? reasonIn(content);
  if (reason) return tMaybe(`waits.${reason}`, t('waits.other'));
  return position ? plural('live.ahead', position) : t('live.next');
}

function Drawing({ content }: { content: Content }) {
  const now = progressOf(content.id).value;
  const part = partDone(now);
  const words =
    content.status === 'queued'
      ? waitingWords(content, now)
      : tMaybe(`phase.${now.phase ?? ''}`, t('status.running'));
  return (
    <>
      {now.preview && <img class="preview" src={now.preview} alt={t('live.preview')} />}
      <div class="progress-card">
        <p class="row between">
          <span>{reached.value ? words : t('state.reconnecting')}</span>
          <span class="num">
            {now.steps > 0 && `${now.step}/${now.steps}`}
            {now.eta !== null && now.eta > 0 && ` · ${duration(now.eta)}`}
          </span>
        </p>
        <Bar part={part} label={t('live.progress')} />
      </div>
    </>
  );
}
