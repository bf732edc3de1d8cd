// One content in full: its picture or its progress, what to do with it, and what is known of it.

import { useState } from 'preact/hooks';
import { again, cancel, copy, download, linkTo, remove, reuse, varySeed } from '../actions';
import { duration, plural, t, tMaybe } from '../i18n';
import { partDone, progressOf } from '../live';
import { go } from '../route';
import { reached } from '../store';
import { isFinal, type Content } from '../types';
import { Picture } from './picture';
import { Report } from './report';
import { Bar, Button, Confirm } from './ui';

interface Props {
  content: Content;
  /** Shows another content in this one's place. */
  onShow: (id: string) => void;
  onRemoved: () => void;
}

export function Viewer({ content, onShow, onRemoved }: Props) {
  const [place, setPlace] = useState(0);
  const shown = Math.min(place, Math.max(0, content.images.length - 1));
  return (
    <article class="viewer" aria-label={t('viewer.label')}>
      <div class="viewer-main">
        <Frame content={content} place={shown} />
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
        <Actions content={content} place={shown} onShow={onShow} onRemoved={onRemoved} />
      </div>
      <Report content={content} />
    </article>
  );
}

function Frame({ content, place }: { content: Content; place: number }) {
  // A side that was left open is known once it is drawn: square until then.
  const [width, height] = [content.parameters.width ?? 1, content.parameters.height ?? 1];
  // Small models' pictures are shown larger, with their pixels' edges softened by the browser.
  const box = {
    aspectRatio: `${width} / ${height}`,
    '--ratio': String(width / height),
  };
  return (
    <div class="frame" style={box} data-status={content.status}>
      {content.images.length ? (
        <Picture content={content} place={place} eager />
      ) : isFinal(content.status) ? (
        <Ending content={content} />
      ) : (
        <Drawing content={content} />
      )}
    </div>
  );
}

function Ending({ content }: { content: Content }) {
  return (
    <div class="frame-text">
      <h2>{t(`status.${content.status}`)}</h2>
      {content.error && (
        <p>
          {tMaybe(`error.${content.error.code}`, '')} {content.error.message}
        </p>
      )}
    </div>
  );
}

function Drawing({ content }: { content: Content }) {
  const now = progressOf(content.id).value;
  const part = partDone(now);
  const words =
    content.status === 'queued'
      ? now.position
        ? plural('live.ahead', now.position)
        : t('live.next')
      : tMaybe(`phase.${now.phase ?? ''}`, t('status.running'));
  return (
    <>
      {now.preview && <img class="preview" src={now.preview} alt={t('live.preview')} />}
      <div class="live">
        <p class="row between" role="status">
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

function Actions({ content, place, onShow, onRemoved }: Props & { place: number }) {
  const [isAsked, setAsked] = useState(false);
  const show = (found: Content | null) => found && onShow(found.id);
  if (!isFinal(content.status)) {
    return (
      <div class="actions">
        <Button icon="close" onClick={() => void cancel(content.id)}>
          {t('action.cancel')}
        </Button>
      </div>
    );
  }
  const hasPicture = content.images.length > 0;
  return (
    <div class="actions" role="group" aria-label={t('viewer.actions')}>
      <Button icon="again" onClick={() => void again(content).then(show)}>
        {t('action.again')}
      </Button>
      <Button icon="vary" onClick={() => void varySeed(content).then(show)}>
        {t('action.vary')}
      </Button>
      <Button
        icon="reuse"
        onClick={() => {
          reuse(content);
          go('create');
        }}
      >
        {t('action.reuse')}
      </Button>
      {hasPicture && (
        <>
          <Button icon="compare" iconOnly onClick={() => go(`compare/${content.id}`)}>
            {t('action.compare')}
          </Button>
          <Button icon="download" iconOnly onClick={() => void download(content, place)}>
            {t('action.download')}
          </Button>
        </>
      )}
      <Button icon="link" iconOnly onClick={() => void copy(linkTo(content.id), t('told.copied'))}>
        {t('action.link')}
      </Button>
      <Button icon="trash" iconOnly onClick={() => setAsked(true)}>
        {t('action.delete')}
      </Button>
      {isAsked && (
        <Confirm
          title={t('viewer.deleteTitle')}
          text={t('viewer.deleteText')}
          action={t('action.delete')}
          onConfirm={() => void remove(content.id).then((gone) => gone && onRemoved())}
          onClose={() => setAsked(false)}
        />
      )}
    </div>
  );
}

