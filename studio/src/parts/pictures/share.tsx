// A link that shows one picture to whoever has it, for a while.

import { useState } from 'preact/hooks';
import { copy } from '../../state/actions';
import { api, asProblem } from '../../server/api';
import { explain } from '../../server/explain';
import { moment, plural, t } from '../../i18n';
import { tell, tellProblem } from '../../state/store';
import type { Content } from '../../server/types';
import { Button, Dialog, Field } from '../ui';

const HOURS = [1, 24, 24 * 7, 24 * 30];

export function ShareDialog(props: { content: Content; place: number; onClose: () => void }) {
  const picture = props.content.images[props.place];
  const [hours, setHours] = useState(24);
  const [withPrompt, setWithPrompt] = useState(false);
  const [made, setMade] = useState<{ link: string; until: string } | null>(null);
  const [error, setError] = useState<string | null>(null);
  if (!picture) return null;
  const make = async () => {
    try {
      const share = await api.share(picture.id, hours, withPrompt);
      const link = location.origin + share.path;
      setMade({ link, until: share.expires_at });
      await copy(link, t('told.copied'));
    } catch (problem) {
      setError(explain(asProblem(problem)));
    }
  };
  const end = async () => {
    try {
      await api.endShares(picture.id);
      tell(t('share.ended'));
      props.onClose();
    } catch (problem) {
      tellProblem(problem);
    }
  };
  return (
    <Dialog title={t('action.share')} onClose={props.onClose}>
      <p class="muted">{t('share.text')}</p>
      {made ? (
        <Field label={t('share.link')} hint={t('share.until', { date: moment(made.until) })}>
          {(attributes) => (
            <input
              {...attributes}
              type="text"
              readOnly
              value={made.link}
              onFocus={(e) => e.currentTarget.select()}
            />
          )}
        </Field>
      ) : (
        <>
          <Field label={t('share.time')} error={error}>
            {(attributes) => (
              <select
                {...attributes}
                value={hours}
                onChange={(e) => setHours(Number(e.currentTarget.value))}
              >
                {HOURS.map((one) => (
                  <option key={one} value={one}>
                    {one < 24 ? plural('share.hours', one) : plural('share.days', one / 24)}
                  </option>
                ))}
              </select>
            )}
          </Field>
          <label class="row">
            <input
              type="checkbox"
              checked={withPrompt}
              onChange={(e) => setWithPrompt(e.currentTarget.checked)}
            />
            {t('share.withPrompt')}
          </label>
        </>
      )}
      <footer class="row between">
        <Button kind="quiet" onClick={() => void end()}>
          {t('share.end')}
        </Button>
        {made ? (
          <Button icon="copy" onClick={() => void copy(made.link, t('told.copied'))}>
            {t('action.link')}
          </Button>
        ) : (
          <Button kind="accent" icon="share" onClick={() => void make()}>
            {t('share.make')}
          </Button>
        )}
      </footer>
    </Dialog>
  );
}
