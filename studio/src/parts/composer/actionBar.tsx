// What can be done with the picture that is shown.

import { useEffect, useState } from 'preact/hooks';
import { again, asCurl, cancel, copy, enlarge, linkTo, remove, reuse, star, stepScale, stepSeed, varySeed } from '../../state/actions';
import { download } from '../../device/files';
import { number, t } from '../../i18n';
import { itemKey } from '../../state/items';
import { go } from '../../state/route';
import { lazy } from '../../lazy';
import { loras, model } from '../../state/store';
import { isFinal, type Content } from '../../server/types';
import { BoardMenu } from '../pictures/boards';
import { SEED_MAX } from '../../drafting/draft';
import { noteUrl } from '../../drafting/source';
import { Menu, MenuItem } from '../menu';
import { useSource } from '../source/panel';
import { Button } from '../ui';

const ShareDialog = lazy(() => import('../pictures/share').then((found) => found.ShareDialog));

interface Props {
  content: Content;
  place: number;
  onShow: (id: string) => void;
  onRemoved: () => void;
}

// A second click of a double-click on Cancel must not meet what takes its place.
const SETTLE_MS = 700;
const STEP = 0.1;

export function Actions({ content, place, onShow, onRemoved }: Props) {
  const [isSettled, setSettled] = useState(() => !justEnded(content));
  const [shares, setShares] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(true), SETTLE_MS);
    return () => clearTimeout(timer);
  }, []);
  const show = (found: Content | null) => found && onShow(found.id);
  if (!isFinal(content.status)) {
    return (
      <div class="actions">
        <Button key="cancel" icon="close" data-key="cancel" onClick={() => void cancel(content.id)}>
          {t('action.cancel')}
        </Button>
      </div>
    );
  }
  const picture = content.images[place];
  const key = itemKey(content, place);
  // An enlargement was not drawn: no seed or scale of it can be another.
  const isDrawn = !content.parameters.upscale;
  const seed = picture?.seed ?? content.parameters.seed;
  const bounds = model.value?.lora_scale ?? { minimum: -2, maximum: 2 };
  const fits = (scale: number) => scale >= bounds.minimum - 1e-9 && scale <= bounds.maximum + 1e-9;
  return (
    <div class="actions" role="group" aria-label={t('viewer.actions')} inert={!isSettled}>
      {isDrawn && (
        <>
          <Button icon="vary" data-key="vary" onClick={() => void varySeed(content, place).then(show)}>
            {t('action.vary')}
          </Button>
          <Button
            icon="reuse"
            onClick={() => {
              reuse(content, place);
              go('create');
            }}
          >
            {t('action.reuse')}
          </Button>
        </>
      )}
      {picture && (
        <>
          <Button
            icon="star"
            iconOnly
            data-key="star"
            class={picture.starred ? 'on' : ''}
            aria-pressed={picture.starred}
            onClick={() => void star(content, place)}
          >
            {t('action.star')}
          </Button>
          <Button
            icon="download"
            iconOnly
            data-key="download"
            onClick={() => void download(content, place)}
          >
            {t('action.download')}
          </Button>
          <Button
            icon="compare"
            iconOnly
            data-key="compare"
            onClick={() => go(`compare/${content.id}`)}
          >
            {t('action.compare')}
          </Button>
        </>
      )}
      <Button
        icon="trash"
        iconOnly
        data-key="delete"
        onClick={() =>
          void remove([key], () => onShow(content.id)).then((gone) => {
            if (gone && content.images.length <= 1) onRemoved();
          })
        }
      >
        {t('action.delete')}
      </Button>
      <Menu label={t('action.more')}>
        {picture && (
          <MenuItem
            icon="brush"
            onClick={() => {
              noteUrl(picture.id, picture.url);
              useSource({ id: picture.id, width: picture.width, height: picture.height });
              go('create');
            }}
          >
            {t('action.drawOver')}
          </MenuItem>
        )}
        {picture && model.value && (
          <MenuItem icon="expand" onClick={() => void enlarge(picture.id).then(show)}>
            {t('action.enlarge')}
          </MenuItem>
        )}
        {isDrawn && (
          <>
            <MenuItem icon="plus" onClick={() => void varySeed(content, place, 4).then(show)}>
              {t('action.fourMore')}
            </MenuItem>
            {seed < SEED_MAX && (
              <MenuItem icon="right" onClick={() => void stepSeed(content, place, 1).then(show)}>
                {t('action.seedUp')}
              </MenuItem>
            )}
            {seed > 0 && (
              <MenuItem icon="left" onClick={() => void stepSeed(content, place, -1).then(show)}>
                {t('action.seedDown')}
              </MenuItem>
            )}
          </>
        )}
        {content.loras
          .filter((used) => loras.value?.some((lora) => lora.id === used.lora_model_id))
          .flatMap((used) =>
            // Not beyond its bounds: it would be the same picture again.
            [STEP, -STEP].filter((by) => fits(used.scale + by)).map((by) => (
              <MenuItem
                key={`${used.lora_model_id}${by}`}
                icon={by > 0 ? 'plus' : 'minus'}
                onClick={() => void stepScale(content, place, used.lora_model_id, by).then(show)}
              >
                {t('action.scaleTo', { name: used.name, scale: number(used.scale + by, 2, 2) })}
              </MenuItem>
            )),
          )}
        <MenuItem icon="again" onClick={() => void again(content).then(show)}>
          {t('action.again')}
        </MenuItem>
        {isDrawn && (
          <>
            <hr />
            <MenuItem icon="reuse" onClick={() => reuse(content, place, 'prompt')}>
              {t('action.reusePrompt')}
            </MenuItem>
            <MenuItem icon="lock" onClick={() => reuse(content, place, 'seed')}>
              {t('action.reuseSeed')}
            </MenuItem>
          </>
        )}
        <hr />
        {picture && <BoardMenu images={[picture.id]} />}
        <MenuItem icon="link" onClick={() => void copy(linkTo(key), t('told.copied'))}>
          {t('action.link')}
        </MenuItem>
        {picture && (
          <MenuItem icon="share" onClick={() => setShares(true)}>
            {t('action.share')}
          </MenuItem>
        )}
        {isDrawn && (
          <MenuItem
            icon="copy"
            onClick={() => {
              const text = asCurl(content, place);
              if (text) void copy(text, t('told.copiedCurl'));
            }}
          >
            {t('action.curl')}
          </MenuItem>
        )}
      </Menu>
      {shares && <ShareDialog content={content} place={place} onClose={() => setShares(false)} />}
    </div>
  );
}

/** Whether it ended while it was looked at. */
const justEnded = (content: Content): boolean =>
  isFinal(content.status) &&
  content.finished_at !== null &&
  Math.abs(Date.now() - Date.parse(content.finished_at)) < 3 * SETTLE_MS;
