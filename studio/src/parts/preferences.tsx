// Language, colours and what is told, and the list of shortcuts.

import { notifies, setNotifies, setSounds, sounds } from '../state/finished';
import { language, LANGUAGES, setLanguage, t, type Language } from '../i18n';
import { areOn, LETTERS, setShortcuts } from '../device/shortcuts';
import { setTheme, theme, THEMES, type Theme } from '../device/theme';
import { Dialog } from './ui';

export function Preferences({ compact }: { compact?: boolean }) {
  return (
    <div class={`preferences ${compact ? 'compact' : ''}`}>
      <label>
        <span class={compact ? 'unseen' : ''}>{t('prefs.language')}</span>
        <select
          value={language.value}
          onChange={(e) => setLanguage(e.currentTarget.value as Language)}
        >
          {Object.entries(LANGUAGES).map(([tag, name]) => (
            <option key={tag} value={tag} lang={tag}>
              {compact ? tag.toUpperCase() : name}
            </option>
          ))}
        </select>
      </label>
      <label>
        <span class={compact ? 'unseen' : ''}>{t('prefs.theme')}</span>
        <select value={theme.value} onChange={(e) => setTheme(e.currentTarget.value as Theme)}>
          {THEMES.map((one) => (
            <option key={one} value={one}>
              {t(`prefs.${one}`)}
            </option>
          ))}
        </select>
      </label>
      {!compact && (
        <>
          <Check
            label={t('prefs.notify')}
            isOn={notifies.value}
            onChange={(wanted) => void setNotifies(wanted)}
          />
          <Check label={t('prefs.sound')} isOn={sounds.value} onChange={setSounds} />
        </>
      )}
    </div>
  );
}

function Check(props: { label: string; isOn: boolean; onChange: (wanted: boolean) => void }) {
  return (
    <label class="check">
      <input
        type="checkbox"
        checked={props.isOn}
        onChange={(e) => props.onChange(e.currentTarget.checked)}
      />
      {props.label}
    </label>
  );
}

const NAMES = {
  create: 'nav.create',
  gallery: 'nav.gallery',
  loras: 'nav.loras',
  avatars: 'nav.avatars',
  grid: 'nav.grid',
  batches: 'nav.batches',
  costs: 'nav.costs',
} as const;

export function Shortcuts({ onClose }: { onClose: () => void }) {
  const keys: [string, string][] = [
    ['Ctrl ↵', t('action.draw')],
    ['Ctrl ↑ ↓', t('keys.weight')],
    ['/', t('keys.prompt')],
    ...Object.entries(LETTERS).map(([letter, view]): [string, string] => [
      `g ${letter}`,
      t(NAMES[view as keyof typeof NAMES]),
    ]),
    ['← →', t('keys.neighbours')],
    ['s', t('action.star')],
    ['d', t('action.download')],
    ['v', t('action.vary')],
    ['c', t('action.compare')],
    ['Del', t('action.delete')],
    ['Esc', t('keys.back')],
    ['+ − 0 1 f', t('keys.lightbox')],
    ['?', t('keys.title')],
  ];
  return (
    <Dialog title={t('keys.title')} onClose={onClose}>
      <Check label={t('keys.on')} isOn={areOn.value} onChange={setShortcuts} />
      <dl class="keys">
        {keys.map(([key, meaning]) => (
          <div key={key}>
            <dt>
              <kbd>{key}</kbd>
            </dt>
            <dd>{meaning}</dd>
          </div>
        ))}
      </dl>
      <Check
        label={t('prefs.notify')}
        isOn={notifies.value}
        onChange={(wanted) => void setNotifies(wanted)}
      />
      <Check label={t('prefs.sound')} isOn={sounds.value} onChange={setSounds} />
    </Dialog>
  );
}
